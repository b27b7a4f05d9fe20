"""Sphere tracing of a procedural person: colour, true label and depth of every pixel, with anti-aliased edges.

Conventions: rays live in person space (metres), directions are unit length; cameras follow nerfstudio (looking down
-z, y up), a pixel's centre is at (column + 0.5, row + 0.5). Depth is the distance along the ray in metres, 0 where only
background is seen. Light is linear while shading and becomes sRGB at the end. Cones around blocks of pixels, and from
there around tiles of a block, find how far all of their rays may start, or that nothing is there.
"""

import math
from typing import Tuple, no_type_check

import numba as nb
import numpy as np
from jaxtyping import Float, UInt8

from dialogue_nerfstudio.conversation.conversation import Camera
from dialogue_nerfstudio.conversation.simulate import surfaces as sdf
from dialogue_nerfstudio.conversation.simulate.background import BACKGROUND_DEPTH, background_texture
from dialogue_nerfstudio.conversation.simulate.head_model import Person, PersonState, pose_person
from dialogue_nerfstudio.conversation.simulate.shading import TORSO, shade

_JIT = dict(fastmath=True, cache=True, nogil=True, error_model="numpy")
_TILE, _SPLIT = 4, 4
_BLOCK = _TILE * _SPLIT
_NEAR, _FAR = 0.15, 6.0
_SURFACE = 2.5e-4
_SAMPLES_U = (0.72, 0.14, 0.64)
_SAMPLES_V = (0.12, 0.36, 0.86)


@nb.njit(**_JIT)
@no_type_check
def _march(ox, oy, oz, dx, dy, dz, start, far, cone, hr, ht, tr, tt, rig):
    """Trace one ray; returns its depth, or -1 for a miss, and the distance left to the surface.

    With cone > 0 it stops where a cone of that slope would touch.
    """
    t = start
    for _ in range(96):
        d = sdf.scene(ox + t * dx, oy + t * dy, oz + t * dz, hr, ht, tr, tt, rig, sdf.WHOLE)
        limit = cone * t if cone > 0.0 else _SURFACE * (0.4 + t)
        if d < limit:
            return t, d
        t += (d - 0.9 * limit) * 0.95 if cone > 0.0 else d * 0.97
        if t > far:
            return -1.0, d
    return (t, d) if cone > 0.0 else (-1.0, d)


@nb.njit(**_JIT)
@no_type_check
def _background(ox, oy, oz, dx, dy, dz, texture, extent, depth):
    """Bilinear colour of the textured plane z = depth behind the person."""
    height, width = texture.shape[0], texture.shape[1]
    if dz > -1e-3:
        return texture[0, 0, 0], texture[0, 0, 1], texture[0, 0, 2]
    t = (depth - oz) / dz
    u = (ox + t * dx + extent) / (2.0 * extent) * width - 0.5
    v = (extent - (oy + t * dy)) / (2.0 * extent) * height - 0.5
    u = min(max(u, 0.0), width - 1.001)
    v = min(max(v, 0.0), height - 1.001)
    i, j = int(v), int(u)
    a, b = v - i, u - j
    w00, w01, w10, w11 = (1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b
    r = (
        w00 * texture[i, j, 0]
        + w01 * texture[i, j + 1, 0]
        + w10 * texture[i + 1, j, 0]
        + w11 * texture[i + 1, j + 1, 0]
    )
    g = (
        w00 * texture[i, j, 1]
        + w01 * texture[i, j + 1, 1]
        + w10 * texture[i + 1, j, 1]
        + w11 * texture[i + 1, j + 1, 1]
    )
    c = (
        w00 * texture[i, j, 2]
        + w01 * texture[i, j + 1, 2]
        + w10 * texture[i + 1, j, 2]
        + w11 * texture[i + 1, j + 1, 2]
    )
    return r, g, c


@nb.njit(**_JIT)
@no_type_check
def _trace(
    u,
    v,
    focal,
    cx,
    cy,
    pose,
    start,
    far,
    hr,
    ht,
    tr,
    tt,
    rig,
    palette,
    texture,
    extent,
    depth,
    label,
    near_t,
    shadow,
    sky,
):
    """Colour, label, depth, shadow and sky seen through image position (u, v).

    `label`, `shadow` and `sky` are a neighbour's, as in `shade`; they hold where the depth is within 8 mm of its
    `near_t`.
    """
    px, py = (u - cx) / focal, -(v - cy) / focal
    dx = pose[0, 0] * px + pose[0, 1] * py - pose[0, 2]
    dy = pose[1, 0] * px + pose[1, 1] * py - pose[1, 2]
    dz = pose[2, 0] * px + pose[2, 1] * py - pose[2, 2]
    norm = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
    dx, dy, dz = dx * norm, dy * norm, dz * norm
    ox, oy, oz = pose[0, 3], pose[1, 3], pose[2, 3]
    if start >= 0.0:
        t, d = _march(ox, oy, oz, dx, dy, dz, start, far, 0.0, hr, ht, tr, tt, rig)
        if t > 0.0:
            label = label if abs(t - near_t) < 0.008 else -1
            r, g, b, label, shadow, sky = shade(
                ox + t * dx, oy + t * dy, oz + t * dz, d, dx, dy, dz, hr, ht, tr, tt, rig, palette, label, shadow, sky
            )
            return r, g, b, label, t, shadow, sky
    r, g, b = _background(ox, oy, oz, dx, dy, dz, texture, extent, depth)
    return r, g, b, 0, 0.0, 1.0, 1.0


@nb.njit(**_JIT)
@no_type_check
def _cone_start(u, v, pixels, start, far, focal, cx, cy, pose, hr, ht, tr, tt, rig):
    """Depth up to which every ray of a square of pixels around (u, v) is free, or -1 if all of them miss."""
    px, py = (u - cx) / focal, -(v - cy) / focal
    dx = pose[0, 0] * px + pose[0, 1] * py - pose[0, 2]
    dy = pose[1, 0] * px + pose[1, 1] * py - pose[1, 2]
    dz = pose[2, 0] * px + pose[2, 1] * py - pose[2, 2]
    norm = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
    # Half of the square's diagonal, seen at unit distance, with half a pixel for the samples between centres.
    slope = math.sqrt(0.5) * (pixels + 1) / focal
    t, _ = _march(
        pose[0, 3], pose[1, 3], pose[2, 3], dx * norm, dy * norm, dz * norm, start, far, slope, hr, ht, tr, tt, rig
    )
    return max(t * (1.0 - slope), _NEAR) if t > 0.0 else -1.0


@nb.njit(**_JIT)
@no_type_check
def _neighbours(row, column, bottom, right, labels, depth, light):
    """Label, depth and mean slow light of the seed pixels around a pixel in its tile; label -1 where they disagree."""
    label, near_t, shadow, sky, count, first_shadow = -1, 0.0, 0.0, 0.0, 0, 0.0
    for i in range(row - row % 2, min(row + row % 2 + 1, bottom), 2):
        for j in range(column - column % 2, min(column + column % 2 + 1, right), 2):
            if count == 0:
                label, near_t = int(labels[i, j]), float(depth[i, j])
                first_shadow = light[i, j, 0]
            elif (
                labels[i, j] != label or abs(depth[i, j] - near_t) > 0.008 or abs(light[i, j, 0] - first_shadow) > 0.12
            ):
                return -1, 0.0, 1.0, 1.0
            shadow, sky, count = shadow + light[i, j, 0], sky + light[i, j, 1], count + 1
    return label, near_t, shadow / count, sky / count


@nb.njit(parallel=True, **_JIT)
@no_type_check
def _render(
    width,
    height,
    focal,
    cx,
    cy,
    pose,
    hr,
    ht,
    tr,
    tt,
    rigs,
    palette,
    texture,
    extent,
    depth_plane,
    edge_threshold,
    color,
    labels,
    depth,
):
    blocks_x, blocks_y = (width + _BLOCK - 1) // _BLOCK, (height + _BLOCK - 1) // _BLOCK
    starts = np.empty((blocks_y * _SPLIT, blocks_x * _SPLIT))
    light = np.empty((height, width, 2))
    far = math.sqrt(pose[0, 3] ** 2 + pose[1, 3] ** 2 + pose[2, 3] ** 2) + 0.8
    for block in nb.prange(blocks_x * blocks_y):
        rig = rigs[0]
        by, bx = block // blocks_x, block % blocks_x
        coarse = _cone_start(
            (bx + 0.5) * _BLOCK, (by + 0.5) * _BLOCK, _BLOCK, _NEAR, far, focal, cx, cy, pose, hr, ht, tr, tt, rig
        )
        for tile in range(_SPLIT * _SPLIT):
            ty, tx = by * _SPLIT + tile // _SPLIT, bx * _SPLIT + tile % _SPLIT
            start = coarse
            if coarse > 0.0:
                start = _cone_start(
                    (tx + 0.5) * _TILE, (ty + 0.5) * _TILE, _TILE, coarse, far, focal, cx, cy, pose, hr, ht, tr, tt, rig
                )
            starts[ty, tx] = start
            # Every second pixel of every second row measures its slow light; the rest take their neighbours' where
            # these agree.
            for phase in range(2):
                for row in range(ty * _TILE, min((ty + 1) * _TILE, height)):
                    for column in range(tx * _TILE, min((tx + 1) * _TILE, width)):
                        seed = row % 2 == 0 and column % 2 == 0
                        if seed != (phase == 0):
                            continue
                        label, near_t, shadow, sky = -1, 0.0, 1.0, 1.0
                        if phase == 1:
                            label, near_t, shadow, sky = _neighbours(
                                row,
                                column,
                                min((ty + 1) * _TILE, height),
                                min((tx + 1) * _TILE, width),
                                labels,
                                depth,
                                light,
                            )
                        r, g, b, label, t, shadow, sky = _trace(
                            column + 0.5,
                            row + 0.5,
                            focal,
                            cx,
                            cy,
                            pose,
                            start,
                            far,
                            hr,
                            ht,
                            tr,
                            tt,
                            rig,
                            palette,
                            texture,
                            extent,
                            depth_plane,
                            label,
                            near_t,
                            shadow,
                            sky,
                        )
                        color[row, column, 0], color[row, column, 1], color[row, column, 2] = r, g, b
                        labels[row, column] = label
                        depth[row, column] = t
                        light[row, column, 0], light[row, column, 1] = shadow, sky
    if edge_threshold <= 0.0:
        return
    smooth = np.empty_like(color)
    for row in nb.prange(height):
        rig = rigs[0]
        for column in range(width):
            contrast = 0.0
            different = False
            closest = depth[row, column] if depth[row, column] > 0.0 else far
            for step in range(4):
                i = row + (1 if step == 0 else (-1 if step == 1 else 0))
                j = column + (1 if step == 2 else (-1 if step == 3 else 0))
                if i < 0 or j < 0 or i >= height or j >= width:
                    continue
                if depth[i, j] > 0.0:
                    closest = min(closest, depth[i, j])
                different = (
                    different or labels[i, j] != labels[row, column] or abs(depth[i, j] - depth[row, column]) > 0.012
                )
                for k in range(3):
                    contrast = max(contrast, abs(math.sqrt(color[i, j, k]) - math.sqrt(color[row, column, k])))
            # Patterns of clothes are painted with edges as wide as a pixel of the usual size already.
            threshold = edge_threshold * (2.0 if labels[row, column] == TORSO else 1.0)
            if (labels[row, column] != 0 or different) and (different or contrast > threshold):
                # The centre and three samples around it.
                r = 0.25 * min(color[row, column, 0], 1.0)
                g = 0.25 * min(color[row, column, 1], 1.0)
                b = 0.25 * min(color[row, column, 2], 1.0)
                start = max(starts[row // _TILE, column // _TILE], closest - 0.02)
                for sample in range(3):
                    sr, sg, sb, _, _, _, _ = _trace(
                        column + _SAMPLES_U[sample],
                        row + _SAMPLES_V[sample],
                        focal,
                        cx,
                        cy,
                        pose,
                        start,
                        far,
                        hr,
                        ht,
                        tr,
                        tt,
                        rig,
                        palette,
                        texture,
                        extent,
                        depth_plane,
                        int(labels[row, column]),
                        float(depth[row, column]),
                        light[row, column, 0],
                        light[row, column, 1],
                    )
                    r, g, b = r + 0.25 * min(sr, 1.0), g + 0.25 * min(sg, 1.0), b + 0.25 * min(sb, 1.0)
                smooth[row, column, 0], smooth[row, column, 1], smooth[row, column, 2] = r, g, b
            else:
                for k in range(3):
                    smooth[row, column, k] = color[row, column, k]
    for row in nb.prange(height):
        for column in range(width):
            for k in range(3):
                color[row, column, k] = smooth[row, column, k]


def render_person(
    person: Person, state: PersonState, camera: Camera, antialias: bool = True
) -> Tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """Render one person in any state from any camera.

    Args:
        person: Looks.
        state: Pose, expression, blink, gaze and torso sway.
        camera: Pinhole camera in the person's space.
        antialias: Take four more samples where neighbouring pixels differ.

    Returns:
        sRGB image, label map (background 0, torso 1, neck 2, head 3, of each pixel's centre) and depth along the ray
        in metres (0 on the background).
    """
    posed = pose_person(person, state)
    shape = (camera.height, camera.width)
    color = np.empty((*shape, 3), np.float64)
    labels = np.zeros(shape, np.uint8)
    depth = np.empty(shape, np.float32)
    texture, extent = background_texture(person.background, person.seed)
    _render(
        camera.width,
        camera.height,
        float(camera.focal),
        float(camera.cx),
        float(camera.cy),
        np.ascontiguousarray(camera.camera_to_person, np.float64),
        posed.head_rotation,
        posed.head_translation,
        posed.torso_rotation,
        posed.torso_translation,
        posed.rig,
        person.palette_array(),
        texture,
        extent,
        BACKGROUND_DEPTH,
        0.11 if antialias else 0.0,
        color,
        labels,
        depth,
    )
    return to_srgb(color), labels, depth


def render_background(person: Person, camera: Camera) -> UInt8[np.ndarray, "h w 3"]:
    """The static plate behind a person, as `render_person` shows it where nobody is."""
    texture, extent = background_texture(person.background, person.seed)
    color = np.empty((camera.height, camera.width, 3), np.float64)
    _render_background(
        float(camera.focal),
        float(camera.cx),
        float(camera.cy),
        np.ascontiguousarray(camera.camera_to_person, np.float64),
        texture,
        extent,
        BACKGROUND_DEPTH,
        color,
    )
    return to_srgb(color)


@nb.njit(parallel=True, **_JIT)
@no_type_check
def _render_background(focal, cx, cy, pose, texture, extent, depth_plane, color):
    for row in nb.prange(color.shape[0]):
        for column in range(color.shape[1]):
            px, py = (column + 0.5 - cx) / focal, -(row + 0.5 - cy) / focal
            dx = pose[0, 0] * px + pose[0, 1] * py - pose[0, 2]
            dy = pose[1, 0] * px + pose[1, 1] * py - pose[1, 2]
            dz = pose[2, 0] * px + pose[2, 1] * py - pose[2, 2]
            norm = 1.0 / math.sqrt(dx * dx + dy * dy + dz * dz)
            r, g, b = _background(
                pose[0, 3], pose[1, 3], pose[2, 3], dx * norm, dy * norm, dz * norm, texture, extent, depth_plane
            )
            color[row, column, 0], color[row, column, 1], color[row, column, 2] = r, g, b


def to_srgb(linear: Float[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Linear light to 8-bit sRGB (gamma 2.2), clipping above 1."""
    return (np.clip(linear, 0.0, 1.0) ** (1 / 2.2) * 255.0 + 0.5).astype(np.uint8)
