"""Colour of a procedural person's surface: what material lies at a point, and how three lights and the sky fall on it.

Conventions: points and directions in person space (metres, unit vectors), colours in linear light. Diffuse light is
Lambert's, wrapped on skin so that the terminator turns red as light does under skin; highlights are Blinn-Phong;
occlusion is sampled along the normal (Evans, "Fast approximations for global illumination on dynamic scenes", 2006)
and the key light casts a soft shadow.
"""

import math
from typing import no_type_check

import numba as nb

from dialogue_nerfstudio.conversation.simulate import surfaces as sdf
from dialogue_nerfstudio.conversation.simulate.surfaces import mix, smooth_step, value_noise

_JIT = dict(fastmath=True, cache=True, nogil=True, error_model="numpy")

BACKGROUND, TORSO, NECK, HEAD = 0, 1, 2, 3
_SKIN, _BLUSH, _LIP, _BROW, _IRIS, _IRIS_RIM, _HAIR, _HAIR_LIGHT, _CLOTH, _CLOTH_ALT, _COLLAR, _BUTTON = range(12)
_PLAIN, _FLESH, _EYE, _WET, _STRAND = range(5)

_KEY = (-0.255, 0.455, 0.853)
_FILL = (0.800, 0.150, 0.581)
_RIM = (0.560, 0.420, -0.714)


@nb.njit(**_JIT)
@no_type_check
def _blend(r, g, b, palette, row, weight):
    return mix(r, palette[row, 0], weight), mix(g, palette[row, 1], weight), mix(b, palette[row, 2], weight)


@nb.njit(**_JIT)
@no_type_check
def _skin_color(x, y, z, rig, palette):
    """Bare skin of face and ears, with brows, blush, stubble, freckles, nostrils and the inside of the mouth."""
    seed = rig.seed
    r, g, b = palette[_SKIN, 0], palette[_SKIN, 1], palette[_SKIN, 2]
    mottle = 1.0 + 0.07 * (value_noise(x * 130.0 + seed, y * 130.0, z * 130.0) - 0.5)
    r, g, b = r * mottle, g * mottle, b * mottle
    ax = abs(x)
    cheek = math.exp(-((ax - 0.043) ** 2 + (y + 0.016) ** 2) / 0.00042) * smooth_step(0.0, 0.05, z)
    nose = math.exp(-(x * x + (y - rig.nose_tip_y) ** 2) / 0.00016) * smooth_step(0.08, 0.1, z)
    ear = smooth_step(rig.ear_x - 0.004, rig.ear_x + 0.008, ax) * 0.8
    r, g, b = _blend(r, g, b, palette, _BLUSH, rig.blush * min(cheek * 0.75 + nose * 0.5 + ear, 1.0))
    if rig.freckles > 0.0 and z > 0.04:
        spots = value_noise(x * 390.0 + y * 230.0, y * 390.0 - x * 230.0, seed + z * 200.0)
        band = math.exp(-(((y + 0.004) / 0.018) ** 2)) * smooth_step(0.068, 0.03, ax)
        r, g, b = _blend(r, g, b, palette, _BROW, rig.freckles * band * smooth_step(0.66, 0.95, spots) * 0.60)
    if rig.stubble > 0.0 and z > -0.01:
        beard = smooth_step(-0.012, -0.040, y - 0.55 * (ax - 0.03)) * smooth_step(-0.01, 0.025, z)
        tache = math.exp(-(((y + 0.034) / 0.006) ** 2)) * smooth_step(0.030, 0.018, ax)
        grain = 0.72 + 0.5 * value_noise(x * 600.0, y * 600.0, z * 600.0)
        r, g, b = _blend(r, g, b, palette, _BROW, min(rig.stubble * max(beard, tache) * grain * 0.5, 0.85))
    if z > 0.02:
        # Thin skin around the eyes is a shade darker.
        orbit = math.exp(-((ax - rig.eye_x) ** 2 + (y - rig.eye_y + 0.002) ** 2 * 1.6) / 0.00034)
        shade_ = 1.0 - 0.13 * orbit
        r, g, b = r * shade_, g * shade_ * (1.0 - 0.03 * orbit), b * shade_
        brow = sdf.brow_offset(x, y, rig)
        if brow < 0.002:
            hairs = 0.78 + 0.3 * value_noise(x * 900.0 + y * 500.0, y * 160.0, seed)
            r, g, b = _blend(r, g, b, palette, _BROW, smooth_step(0.0012, -0.0012, brow) * min(hairs, 1.0) * 0.92)
        fold = smooth_step(0.3, 1.0, rig.smile_left if x > 0.0 else rig.smile_right)
        if fold > 0.0:
            line = abs(ax - 0.026 - 0.45 * (-0.024 - y)) - 0.0006
            crease = smooth_step(0.0030, 0.0, line) * smooth_step(-0.058, -0.046, y) * smooth_step(-0.020, -0.030, y)
            r, g, b = r * (1 - 0.16 * fold * crease), g * (1 - 0.22 * fold * crease), b * (1 - 0.22 * fold * crease)
        if y < 0.0 and y > rig.nose_tip_y - 0.02 and z > 0.068 and ax < 0.03:
            ala_y = rig.nose_tip_y - 0.004 + rig.nose_wrinkle
            nostril = sdf.ellipsoid(
                ax - rig.nose_width * 0.60, y - ala_y + 0.0068, z - rig.nose_tip_z + 0.015, 0.0036, 0.0028, 0.0060
            )
            # The crease where a nostril's wing meets the cheek, and the shaded underside of the tip.
            wing = sdf.ellipsoid(ax - rig.nose_width, y - ala_y, z - rig.nose_tip_z + 0.020, 0.0068, 0.0066, 0.0095)
            crease = smooth_step(0.0025, 0.0, abs(wing - 0.0015)) * smooth_step(
                rig.nose_width, rig.nose_width + 0.006, ax
            )
            under = smooth_step(rig.nose_tip_y - 0.003, rig.nose_tip_y - 0.010, y) * smooth_step(
                rig.nose_width + 0.005, rig.nose_width - 0.001, ax
            )
            under *= smooth_step(rig.nose_tip_z - 0.024, rig.nose_tip_z - 0.012, z)
            soft = 1.0 - 0.30 * crease - 0.25 * under
            dark = soft * (1.0 - 0.8 * smooth_step(0.0010, -0.0004, nostril))
            r, g, b = r * dark, g * dark * mix(0.94, 1.0, soft), b * dark * mix(0.94, 1.0, soft)
    return r, g, b


@nb.njit(**_JIT)
@no_type_check
def _eye_color(x, y, z, rig, palette):
    """Sclera, iris with fibres and rim, and pupil, shadowed by the upper lid."""
    left = x > 0.0
    lx, ly, lz = (
        (x - (rig.eye_x if left else -rig.eye_x)) / rig.eye_r,
        (y - rig.eye_y) / rig.eye_r,
        (z - rig.eye_z) / rig.eye_r,
    )
    gx = rig.gaze_left_x if left else rig.gaze_right_x
    gy = rig.gaze_left_y if left else rig.gaze_right_y
    gz = rig.gaze_left_z if left else rig.gaze_right_z
    cosine = lx * gx + ly * gy + lz * gz
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    r, g, b = 0.80, 0.78, 0.76
    edge = smooth_step(0.55, 0.95, angle)
    r, g, b = r * (1 - 0.12 * edge), g * (1 - 0.32 * edge), b * (1 - 0.34 * edge)
    if angle < rig.iris_r * 1.08:
        u = angle / rig.iris_r
        spoke = math.atan2(ly - gy * cosine, lx - gx * cosine)
        fibre = value_noise(spoke * 9.0 + 40.0, u * 2.0, rig.seed)
        bright = 0.70 + 0.9 * fibre * smooth_step(0.30, 0.75, u)
        rim = smooth_step(0.72, 0.98, u)
        ir = mix(palette[_IRIS, 0] * bright, palette[_IRIS_RIM, 0], rim)
        ig = mix(palette[_IRIS, 1] * bright, palette[_IRIS_RIM, 1], rim)
        ib = mix(palette[_IRIS, 2] * bright, palette[_IRIS_RIM, 2], rim)
        pupil = 1.0 - smooth_step(0.36, 0.45, u)
        ir, ig, ib = mix(ir, 0.006, pupil), mix(ig, 0.006, pupil), mix(ib, 0.008, pupil)
        cover = smooth_step(1.06, 0.96, u)
        r, g, b = mix(r, ir, cover), mix(g, ig, cover), mix(b, ib, cover)
    upper, _ = sdf.lid_edges(abs(x) - rig.eye_x, rig, left)
    elevation = math.atan2(y - rig.eye_y, max(z - rig.eye_z, 1e-4))
    lid_shadow = mix(0.42, 1.0, smooth_step(0.0, 0.24, upper - elevation))
    return r * lid_shadow, g * lid_shadow, b * lid_shadow


@nb.njit(**_JIT)
@no_type_check
def _hair_color(x, y, z, rig, palette):
    """Hair with strands that run along its styling direction."""
    around = math.atan2(x - rig.part_x, z + 0.02) if rig.hair_length > 0.0 else math.atan2(x - rig.part_x, y - 0.03)
    along = y if rig.hair_length > 0.0 else z
    coarse = value_noise(around * 9.0 + rig.seed, along * 22.0, 3.0)
    fine = value_noise(around * 44.0, along * 16.0 + 5.0, rig.seed)
    if rig.curl > 0.0:
        fine = value_noise(x * 150.0, y * 150.0, z * 150.0)
        coarse = value_noise(x * 70.0, y * 70.0, z * 70.0)
    light = min(max(0.20 + 0.55 * (coarse - 0.5) + 0.75 * (fine - 0.5), 0.0), 1.0)
    r, g, b = palette[_HAIR, 0], palette[_HAIR, 1], palette[_HAIR, 2]
    r, g, b = _blend(r, g, b, palette, _HAIR_LIGHT, light)
    gray = rig.gray * smooth_step(0.4, 0.7, fine) * smooth_step(0.09, 0.03, y)
    return mix(r, 0.45, gray), mix(g, 0.45, gray), mix(b, 0.45, gray), fine


@nb.njit(**_JIT)
@no_type_check
def _cloth_color(x, y, z, rig, palette):
    """Clothes with their pattern, collar, placket, buttons or lapels, and bare skin inside a neckline."""
    style = rig.clothing
    body = sdf.torso_body(x, y, z, rig)
    trim = sdf.collar(x, y, z, rig)
    r, g, b = palette[_CLOTH, 0], palette[_CLOTH, 1], palette[_CLOTH, 2]
    weave = 1.0 + 0.10 * (value_noise(x * 400.0, y * 400.0, z * 400.0) - 0.5)
    if rig.pattern == 1.0:
        # Stripes round the body, sagging a little over the chest.
        phase = (y + 0.10 * x * x * 4.0) / (0.030 * rig.pattern_scale)
        stripe = smooth_step(0.40, 0.54, abs(phase - math.floor(phase) - 0.5) * 2.0)
        r, g, b = _blend(r, g, b, palette, _CLOTH_ALT, stripe)
    elif rig.pattern == 2.0:
        # Broad enough for the small pictures that a CPU trains on: pinstripes would be two pixels wide there.
        phase = x / (0.0450 * rig.pattern_scale)
        r, g, b = _blend(
            r, g, b, palette, _CLOTH_ALT, 0.7 * smooth_step(0.50, 0.74, abs(phase - math.floor(phase) - 0.5) * 2.0)
        )
    elif rig.pattern == 3.0:
        u, v = x / (0.034 * rig.pattern_scale), y / (0.034 * rig.pattern_scale)
        across = smooth_step(0.55, 0.62, abs(u - math.floor(u) - 0.5) * 2.0)
        down = smooth_step(0.55, 0.62, abs(v - math.floor(v) - 0.5) * 2.0)
        r, g, b = _blend(r, g, b, palette, _CLOTH_ALT, 0.45 * across + 0.45 * down)
    if style == 3.0:
        edge = sdf.lapel(x, y)
        if edge > 0.0 or z < -0.05:
            if z > -0.05:
                r, g, b = palette[_COLLAR, 0], palette[_COLLAR, 1], palette[_COLLAR, 2]
        else:
            fold = abs(abs(x) - 0.052 - 0.42 * max(y + 0.33, 0.0))
            line = 1.0 - 0.45 * smooth_step(0.004, 0.0, fold) - 0.35 * smooth_step(-0.004, 0.0, edge)
            r, g, b = r * line, g * line, b * line
    elif trim < body + 0.001:
        r, g, b = palette[_COLLAR, 0], palette[_COLLAR, 1], palette[_COLLAR, 2]
        if style == 0.0:
            rib = 1.0 + 0.16 * math.sin(math.atan2(x, z + 0.036) * 70.0)
            r, g, b = r * rib, g * rib, b * rib
    elif style == 1.0:
        placket = smooth_step(0.0020, 0.0005, abs(abs(x) - 0.0145)) * (1.0 if z > 0.0 else 0.0)
        r, g, b = r * (1 - 0.25 * placket), g * (1 - 0.25 * placket), b * (1 - 0.25 * placket)
    elif style == 2.0 and z > 0.0:
        string = abs(abs(x) - 0.030 - 0.004 * math.sin(y * 60.0)) - 0.0028
        cover = smooth_step(0.0010, -0.0010, string) * smooth_step(-0.305, -0.300, y)
        r, g, b = _blend(r, g, b, palette, _BUTTON, cover)
    if rig.buttons > 0.0 and z > 0.0:
        row = (y + 0.235) / 0.055
        by = y + 0.235 - min(math.floor(row + 0.5), 0.0) * 0.055
        disc = math.sqrt(x * x + by * by)
        r, g, b = _blend(r, g, b, palette, _BUTTON, smooth_step(0.0082, 0.0066, disc))
        hole = smooth_step(0.0022, 0.0012, abs(disc - 0.0025)) * 0.4
        r, g, b = r * (1 - hole), g * (1 - hole), b * (1 - hole)
    bare = sdf.neckline(x, y, z, rig)
    flesh = 0
    if bare < 0.0 and trim > 0.0015 and z > -0.03:
        r, g, b = palette[_SKIN, 0], palette[_SKIN, 1], palette[_SKIN, 2]
        flesh = 1
        weave = 1.0
    return r * weave, g * weave, b * weave, flesh


@nb.njit(**_JIT)
@no_type_check
def shade(x, y, z, distance, dx, dy, dz, hr, ht, tr, tt, rig, palette, known_label, known_shadow, known_sky):
    """Colour (linear), label, key-light shadow and open sky of the point (x, y, z), `distance` off the surface, seen
    along (dx, dy, dz).

    A pixel's further samples pass the first one's label, shadow and sky: where the label agrees, slow light is not
    measured again.
    """
    px, py, pz = x - ht[0], y - ht[1], z - ht[2]
    hx = hr[0, 0] * px + hr[1, 0] * py + hr[2, 0] * pz
    hy = hr[0, 1] * px + hr[1, 1] * py + hr[2, 1] * pz
    hz = hr[0, 2] * px + hr[1, 2] * py + hr[2, 2] * pz
    qx, qy, qz = x - tt[0], y - tt[1], z - tt[2]
    tx = tr[0, 0] * qx + tr[1, 0] * qy + tr[2, 0] * qz
    ty = tr[0, 1] * qx + tr[1, 1] * qy + tr[2, 1] * qz
    tz = tr[0, 2] * qx + tr[1, 2] * qy + tr[2, 2] * qz
    if y > 0.03:
        # Only the head reaches up here.
        d_head, d_neck, d_torso = distance, sdf.FAR, sdf.FAR
    else:
        d_head, d_neck, d_torso = sdf.head(hx, hy, hz, rig), sdf.neck(x, y, z, rig), sdf.torso(tx, ty, tz, rig)
    near = sdf.HEAD_PART if d_head < 0.016 else 0
    near |= sdf.NECK_PART if d_neck < 0.016 else 0
    near |= sdf.TORSO_PART if d_torso < 0.016 else 0

    e = 6e-4
    nx = sdf.scene(x + e, y, z, hr, ht, tr, tt, rig, near) - distance
    ny = sdf.scene(x, y + e, z, hr, ht, tr, tt, rig, near) - distance
    nz = sdf.scene(x, y, z + e, hr, ht, tr, tt, rig, near) - distance
    norm = 1.0 / max(math.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
    nx, ny, nz = nx * norm, ny * norm, nz * norm

    gloss, shine, kind = 0.13, 22.0, _FLESH
    fine = 0.5
    if d_torso < d_head and d_torso < d_neck:
        label = TORSO
        r, g, bl, flesh = _cloth_color(tx, ty, tz, rig, palette)
        if flesh == 0:
            kind, gloss, shine = _PLAIN, 0.03, 8.0
            crease = 0.16
            nx += crease * (value_noise(tx * 26.0, ty * 18.0, tz * 26.0 + 7.0) - 0.5)
            ny += crease * (value_noise(tx * 26.0 + 31.0, ty * 18.0, tz * 26.0) - 0.5)
    elif d_neck < d_head:
        label = NECK
        mottle = 1.0 + 0.06 * (value_noise(x * 110.0, y * 110.0, z * 110.0) - 0.5)
        r, g, bl = (
            palette[_SKIN, 0] * mottle * 0.94,
            palette[_SKIN, 1] * mottle * 0.92,
            palette[_SKIN, 2] * mottle * 0.92,
        )
        if rig.stubble > 0.0:
            r, g, bl = _blend(
                r,
                g,
                bl,
                palette,
                _BROW,
                rig.stubble * 0.16 * smooth_step(-0.15, -0.09, hy) * smooth_step(0.0, 0.03, hz),
            )
    else:
        label = HEAD
        d_hair = sdf.hair(hx, hy, hz, rig)
        d_skin = sdf.skin(hx, hy, hz, rig)
        d_lips = sdf.lips(hx, hy, hz, rig) if hz > 0.03 else sdf.FAR
        d_ball = sdf.eyeball(hx, hy, hz, rig) if hz > 0.03 else sdf.FAR
        if d_hair < d_skin and d_hair < 0.002:
            r, g, bl, fine = _hair_color(hx, hy, hz, rig, palette)
            kind, gloss, shine = _STRAND, 0.22, 22.0
        elif d_ball < 6e-4 and sdf.lid_opening(hx, hy, hz, rig) > -2e-4:
            r, g, bl = _eye_color(hx, hy, hz, rig, palette)
            kind, gloss, shine = _EYE, 0.0, 1.0
        elif d_ball < 0.0035 and sdf.lids(hx, hy, hz, rig) < d_skin + 0.001:
            r, g, bl = _skin_color(hx, hy, hz, rig, palette)
            opening = sdf.lid_opening(hx, hy, hz, rig)
            upper = hy - rig.eye_y > 0.0 or (rig.lid_upper_left if hx > 0.0 else rig.lid_upper_right) < 0.05
            tint = rig.makeup * smooth_step(-0.009, -0.001, opening) if upper else 0.0
            r, g, bl = _blend(r, g, bl, palette, _LIP, tint * 0.35)
            lash = smooth_step(-0.0021, -0.0008, opening) * (0.92 if upper else 0.35)
            r, g, bl = mix(r, 0.02, lash), mix(g, 0.014, lash), mix(bl, 0.012, lash)
        else:
            opened = rig.open_up + rig.open_low > 1e-4
            inner = hz > 0.02 and opened and sdf.aperture(hx, hy, rig) < 6e-4
            d_teeth = sdf.teeth(hx, hy, hz, rig) if inner else sdf.FAR
            d_tongue = sdf.tongue(hx, hy, hz, rig) if inner else sdf.FAR
            s = sdf.lip_coordinate(hx, rig)
            behind = sdf.lip_depth(min(max(s, -1.0), 1.0), rig) - hz
            if d_teeth < 4e-4:
                r, g, bl = 0.92, 0.88, 0.80
                shadow = mix(0.45, 1.0, smooth_step(0.001, 0.008, rig.open_up + rig.open_low)) * mix(
                    1.0, 0.55, smooth_step(0.008, 0.02, abs(hx - rig.mouth_x))
                )
                r, g, bl, kind, gloss, shine = r * shadow, g * shadow, bl * shadow, _WET, 0.25, 50.0
            elif d_tongue < 4e-4:
                r, g, bl, kind, gloss, shine = 0.32, 0.07, 0.065, _WET, 0.15, 30.0
            elif inner and behind > 0.007:
                fade = math.exp(-(behind - 0.007) * 90.0)
                r, g, bl, kind, gloss = 0.16 * fade + 0.012, 0.025 * fade + 0.004, 0.022 * fade + 0.004, _PLAIN, 0.0
            else:
                r, g, bl = _skin_color(hx, hy, hz, rig, palette)
                if hz > 0.05 and abs(s) < 1.1:
                    on_lip = smooth_step(0.0011, -0.0006, d_lips - min(d_skin, 0.0025))
                    r, g, bl = _blend(r, g, bl, palette, _LIP, on_lip * 0.92)
                    gloss, shine = mix(gloss, 0.22, on_lip), mix(shine, 34.0, on_lip)
                    seam = (
                        smooth_step(0.0014, 0.0, abs(hy - sdf.lip_line(s, rig)))
                        if not opened or rig.open_up + rig.open_low < 0.0012
                        else 0.0
                    )
                    seam *= smooth_step(1.06, 0.95, abs(s)) * 0.62
                    r, g, bl = r * (1 - seam), g * (1 - seam), bl * (1 - seam)

    norm = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz)
    nx, ny, nz = nx * norm, ny * norm, nz * norm
    key = nx * _KEY[0] + ny * _KEY[1] + nz * _KEY[2]
    if label == known_label:
        shadow, open_sky = known_shadow, known_sky
    else:
        # Occlusion: how much closer the scene is than the distance walked along the normal.
        o1 = sdf.scene(x + nx * 0.010, y + ny * 0.010, z + nz * 0.010, hr, ht, tr, tt, rig, near) / 0.010
        o2 = sdf.scene(x + nx * 0.035, y + ny * 0.035, z + nz * 0.035, hr, ht, tr, tt, rig, sdf.WHOLE) / 0.035
        open_sky = min(max(0.12 + 0.40 * o1 + 0.48 * o2, 0.10), 1.0)
        shadow = 1.0 if key > -0.2 else 0.0
        if key > -0.2:
            t = 0.014
            for _ in range(6):
                gap = sdf.scene(
                    x + nx * 0.004 + _KEY[0] * t,
                    y + ny * 0.004 + _KEY[1] * t,
                    z + nz * 0.004 + _KEY[2] * t,
                    hr,
                    ht,
                    tr,
                    tt,
                    rig,
                    sdf.WHOLE,
                )
                shadow = min(shadow, 7.0 * gap / t)
                t += max(gap, 0.015)
                if t > 0.15 or shadow < 0.02:
                    break
            shadow = max(shadow, 0.0)
            shadow = shadow * shadow * (3.0 - 2.0 * shadow)
    fill = nx * _FILL[0] + ny * _FILL[1] + nz * _FILL[2]
    rim = nx * _RIM[0] + ny * _RIM[1] + nz * _RIM[2]
    wrap_r, wrap_g, wrap_b = 0.05, 0.05, 0.05
    if kind == _FLESH:
        wrap_r, wrap_g, wrap_b = 0.36, 0.20, 0.14
    elif kind == _EYE:
        wrap_r, wrap_g, wrap_b = 0.5, 0.5, 0.5
    # Under skin the shadow's edge is soft and red as well.
    sh_r, sh_g, sh_b = shadow, shadow, shadow
    if kind == _FLESH:
        sh_r = mix(shadow, math.sqrt(shadow), 0.6)
    kr = max(key + wrap_r, 0.0) / (1 + wrap_r) * sh_r
    kg = max(key + wrap_g, 0.0) / (1 + wrap_g) * sh_g
    kb = max(key + wrap_b, 0.0) / (1 + wrap_b) * sh_b
    f = max(fill + 0.25, 0.0) / 1.25 * (0.4 + 0.6 * open_sky)
    back = max(rim, 0.0)
    sky = 0.5 + 0.5 * ny
    lr = 1.02 * kr + 0.20 * f + 0.30 * back + open_sky * mix(0.15, 0.27, sky)
    lg = 0.95 * kg + 0.23 * f + 0.32 * back + open_sky * mix(0.12, 0.28, sky)
    lb = 0.86 * kb + 0.29 * f + 0.38 * back + open_sky * mix(0.10, 0.31, sky)
    r, g, bl = r * lr, g * lg, bl * lb

    # Highlights of the key light, and of a large window-like fill.
    vx, vy, vz = _KEY[0] - dx, _KEY[1] - dy, _KEY[2] - dz
    half = 1.0 / math.sqrt(vx * vx + vy * vy + vz * vz)
    spec = max((nx * vx + ny * vy + nz * vz) * half, 0.0)
    facing = max(-(nx * dx + ny * dy + nz * dz), 0.0)
    fresnel = (1.0 - facing) ** 4
    if kind == _EYE:
        glint = smooth_step(0.975, 0.990, spec) * 0.85
        return r + glint, g + glint, bl + glint, label, shadow, open_sky
    if kind == _STRAND:
        sheen = spec**shine * gloss * (0.35 + 1.3 * fine) * shadow
        rimlight = 0.25 * back * fresnel
        tint = 0.5
        return (
            r + sheen * mix(palette[_HAIR_LIGHT, 0], 1.0, tint) + rimlight,
            g + sheen * mix(palette[_HAIR_LIGHT, 1], 1.0, tint) + rimlight,
            bl + sheen * mix(palette[_HAIR_LIGHT, 2], 1.0, tint) + rimlight,
            label,
            shadow,
            open_sky,
        )
    light = spec**shine * gloss * shadow + fresnel * 0.06 * open_sky
    return r + light, g + light * 0.97, bl + light * 0.93, label, shadow, open_sky
