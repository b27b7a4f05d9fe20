"""Geometry priors: a solid proxy of every head and torso, which keeps density where a body can be.

One camera saw each person, so that colour alone leaves depth open. The proxy is what is known without it: the
silhouette over the training frames, inflated to a rounded solid of human thickness by a Poisson equation, with a neck
that goes on behind the chin. It does three things in training, and nothing at render time:

- cells away from its surface are ruled out of the occupancy grids (no walls, no floaters, fewer samples);
- light that stops away from its surface costs a little (`*_surface_coefficient`), so that parallax decides where there
  is any and the proxy where there is none;
- rays of cameras and head poses that nobody recorded must stop where they meet the proxy and pass where they miss it
  (`virtual_coefficient`), against holes beside and behind what was seen.

Conventions: metres; a part's own space (head space, or person space for the torso). Distances to the surface are
negative inside. Volumes are [z, y, x], their samples at cell centres of the part's box.
"""

from dataclasses import dataclass
from typing import Iterable, List, Sequence, Tuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import distance_transform_edt, gaussian_filter
from scipy.sparse import coo_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

from dialogue_nerfstudio.conversation import Camera
from dialogue_nerfstudio.conversation.video import HEAD, NECK, TORSO
from dialogue_nerfstudio.nerf.hull import cell_centres

HEAD_MIDDLE = -0.007
"""Depth, in head space, of the head's widest frontal section: between ear and cheek."""
HEAD_THICKNESS = 0.4
"""Bounds half the depth of heads (m), hardly: they are deeper than wide."""
TORSO_MIDDLE = -0.08
"""Depth, in person space, of the plane through the middle of the torso, at the height of the head's middle."""
TORSO_LEAN = 0.22
"""By how much that plane comes forward a metre further down: chests stand out before shoulders."""
TORSO_FLATNESS = 0.5
"""Depth of torsos against solids that are as deep as wide."""
TORSO_THICKNESS = 0.2
"""Bounds half the depth of torsos (m), so that a wide crop makes no barrel."""
NECK_MIDDLE = -0.03
"""Depth, in person space, of the neck's axis: it stands behind the middle of the head."""
NECK_ROUNDNESS = 0.85
"""Depth of necks against solids that are as deep as wide."""
NECK_HALF_WIDTH = 0.055
"""Of a neck that the labels show nowhere (m)."""


@dataclass(frozen=True, eq=False)
class Solid:
    """What reaches `depths` before and behind a plane, which may lean."""

    depths: Float[np.ndarray, "h w"]
    """Half the thickness (m) at each pixel of the recording camera; 0 where the solid is not."""
    middle: float
    """The plane's z at y = 0 (m)."""
    lean: float = 0.0
    """z that the plane gains a metre further down."""


@dataclass
class GeometryPriorConfig:
    """How strongly the proxy of head and torso holds in training; ours."""

    enabled: bool = True
    """Whether there is a proxy at all."""
    resolution: int = 64
    """Cells an axis of the proxy's volume."""
    head_outside: float = 0.06
    """Metres outside the head's proxy that can hold something: noses, lips and hair stand out of a rounded solid."""
    head_inside: float = 0.08
    """Metres below the head's surface that can hold something: open mouths are dark because they are deep."""
    torso_outside: float = 0.03
    """Metres outside the torso's proxy that can hold something: collars, folds."""
    torso_inside: float = 0.04
    """Metres below the torso's surface that can hold something."""
    head_surface_coefficient: float = 0.0
    """Mean square distance, in m², of where light stops from the head's proxy. A head turns, so that parallax knows
    better: of a real person, mouths lose 0.4 dB at 1 and a decibel at 4, and views from the side gain nothing."""
    torso_surface_coefficient: float = 4.0
    """The same for the torso, which hardly turns."""
    virtual_coefficient: float = 3e-3
    """Cross entropy of the opacity of virtual rays against hitting or missing the proxy."""
    virtual_rays: int = 256
    """Rays of a virtual camera and head pose."""
    virtual_interval: int = 4
    """Steps from one virtual camera to the next."""
    virtual_yaw: float = 45.0
    """Degrees that virtual cameras are swung sideways at most."""
    virtual_pitch: float = 20.0
    """Degrees that they are swung up and down at most."""
    virtual_turn: float = 20.0
    """Degrees that the head turns and nods at most, beyond a recorded pose, in front of a virtual camera."""
    core: float = 0.008
    """Metres deep that a virtual ray must pass in the proxy to have to stop there."""
    clearance: float = 0.02
    """Metres from the proxy at which a virtual ray must pass."""


def inflate(
    mask: Bool[np.ndarray, "height width"], pixel: float, thickness: float, roundness: float = 1.0
) -> Float[np.ndarray, "height width"]:
    """Half the depth, in metres, of the rounded solid with a silhouette.

    u solves Δu = −4 with u = 0 outside; √u is the exact half-sphere over a disc, and r √u a half-ellipsoid.
    H (1 − exp(−r √u / H)) bounds it, for a wide torso is hardly deeper than a narrow one. A silhouette cut by the
    picture's edge goes on beyond it (∂u/∂n = 0).

    Args:
        mask: the silhouette.
        pixel: metres a pixel, where the solid is.
        thickness: H, metres.
        roundness: r.
    """
    if not mask.any():
        return np.zeros(mask.shape)
    index = np.full(mask.shape, -1)
    index[mask] = np.arange(mask.sum())
    rows, columns, diagonal = [], [], np.zeros(mask.sum())
    for axis in (0, 1):
        first = [slice(None), slice(None)]
        second = [slice(None), slice(None)]
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = index[tuple(first)].ravel(), index[tuple(second)].ravel()
        # A neighbour beyond the picture's edge adds nothing: that is the free boundary.
        np.add.at(diagonal, a[a >= 0], 1.0)
        np.add.at(diagonal, b[b >= 0], 1.0)
        both = (a >= 0) & (b >= 0)
        rows += [a[both], b[both]]
        columns += [b[both], a[both]]
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = coo_matrix((-np.ones(len(row)), (row, column)), shape=(len(diagonal),) * 2).tocsr()
    # A whisker on the diagonal keeps a mask that fills the picture solvable.
    matrix.setdiag(diagonal + 1e-6)
    height = np.zeros(mask.shape)
    height[mask] = roundness * np.sqrt(np.maximum(spsolve(matrix, np.full(len(diagonal), 4.0 * pixel**2)), 0.0))
    return thickness * (1.0 - np.exp(-height / thickness))


def mean_silhouettes(
    camera: Camera, frames: Iterable[Tuple[Float[np.ndarray, "3 4"], UInt8[np.ndarray, "h w"]]]
) -> Tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """How often each pixel shows (the head, the neck or torso, the neck, the head where it stood).

    The first is of pictures shifted and scaled so that the head's position stands where the person space's origin is
    seen; the head's turns, a few degrees, average out.

    Args:
        camera: the recording camera.
        frames: (head to person space, label map), at any one size of the picture.
    """
    count, head, body, neck, standing = 0, 0.0, 0.0, 0.0, 0.0
    for transform, labels in frames:
        scale = labels.shape[1] / camera.width
        here, near = _project(camera, transform[None, :, 3], scale)
        there, far = _project(camera, np.zeros((1, 3)), scale)
        zoom = near[0] / far[0]
        shift = np.array([[zoom, 0.0, there[0, 0] - zoom * here[0, 0]], [0.0, zoom, there[0, 1] - zoom * here[0, 1]]])
        # warpAffine counts from pixel centres.
        shift[:, 2] += 0.5 * (zoom - 1.0)
        is_head = (labels == HEAD).astype(np.float32)
        head = head + cv2.warpAffine(is_head, shift, labels.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
        standing = standing + is_head
        body = body + np.isin(labels, (TORSO, NECK))
        neck = neck + (labels == NECK)
        count += 1
    return head / count, body / count, neck / count, standing / count


def with_hidden_neck(
    body: Bool[np.ndarray, "h w"], head: Bool[np.ndarray, "h w"], neck_column: float, half_width: float, top: int
) -> Bool[np.ndarray, "h w"]:
    """The torso's silhouette with a neck that goes on behind the head up to the row `top`.

    The visible neck's narrowest row right below the head gives its place and width, where it is seen; it is never taken
    for wider than `half_width`, nor for narrower than half of that (hair hides the sides of many necks).

    Args:
        neck_column: where the neck's axis is taken to be if none is seen.
        half_width: pixels.
    """
    result = body.copy()
    column, reach, start = neck_column, half_width, body.shape[0]
    for row in range(top, body.shape[0]):
        across = np.flatnonzero(body[row])
        above = np.flatnonzero(head[max(row - 1, 0)])
        if len(across) and len(above) and across.min() >= above.min() - 2 and across.max() <= above.max() + 2:
            column, start = 0.5 * (across.min() + across.max() + 1), row
            reach = float(np.clip(0.5 * len(across), 0.5 * half_width, half_width))
            break
    left, right = round(float(column - reach)), round(float(column + reach))
    hidden = np.zeros_like(body)
    hidden[top:, max(left, 0) : max(right, 0)] = True
    below_visible = np.zeros_like(body)
    below_visible[: min(start + 1, body.shape[0])] = True
    return result | (hidden & head) | (hidden & below_visible)


def distance_volume(
    box: Float[np.ndarray, "2 3"],
    resolution: int,
    camera: Camera,
    parts: Sequence[Solid],
) -> Float[np.ndarray, "z y x"]:
    """Signed distances, in metres, to the union of some solids.

    A point belongs to the pixel it is seen at, so that a solid's silhouette from the recording camera is the one it was
    inflated from. Below the picture solids go on as in their last row: bodies do.
    """
    centres = cell_centres(box, resolution)
    height, width = parts[0].depths.shape
    pixels, _ = _project(camera, centres, width / camera.width)
    column, row = np.floor(pixels[:, 0]).astype(int), np.floor(pixels[:, 1]).astype(int)
    row = np.minimum(row, height - 1)
    inside = (column >= 0) & (row >= 0) & (column < width)
    solid = np.zeros(len(centres), dtype=bool)
    for part in parts:
        depth = np.zeros(len(centres))
        depth[inside] = part.depths[row[inside], column[inside]]
        solid |= np.abs(centres[:, 2] - (part.middle - part.lean * centres[:, 1])) < depth
    solid = solid.reshape(3 * [resolution])
    cell = ((box[1] - box[0]) / resolution)[::-1]
    if not solid.any():
        return np.full(solid.shape, float(np.linalg.norm(box[1] - box[0])))
    outside = distance_transform_edt(~solid, sampling=cell)
    within = distance_transform_edt(solid, sampling=cell)
    return gaussian_filter(outside - within, 1.0, mode="nearest")


def _project(
    camera: Camera, points: Float[np.ndarray, "n 3"], scale: float
) -> Tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
    """(column, row) of points in person space, in pixels of the picture scaled by `scale`, and their distance."""
    local = (points - camera.camera_to_person[:, 3]) @ camera.camera_to_person[:, :3]
    distance = np.maximum(-local[:, 2], 1e-3)
    column = (camera.focal * local[:, 0] / distance + camera.cx) * scale
    row = (-camera.focal * local[:, 1] / distance + camera.cy) * scale
    return np.stack([column, row], axis=-1), distance


def person_proxy(
    config: GeometryPriorConfig,
    camera: Camera,
    head_box: Float[np.ndarray, "2 3"],
    torso_box: Float[np.ndarray, "2 3"],
    frames: List[Tuple[Float[np.ndarray, "3 4"], UInt8[np.ndarray, "h w"]]],
) -> Tuple[Float[np.ndarray, "z y x"], Float[np.ndarray, "z y x"]]:
    """(head's, torso's) distance volumes of a participant.

    Args:
        frames: (head to person space, label map) of training frames, at the training resolution.
    """
    head, visible, neck, standing = (share > 0.5 for share in mean_silhouettes(camera, frames))
    scale = head.shape[1] / camera.width
    (origin, base), distance = _project(camera, np.array([[0.0, 0.0, 0.0], [0.0, 0.0, NECK_MIDDLE]]), scale)
    pixel = distance / (camera.focal * scale)
    body = with_hidden_neck(visible, standing, base[0], NECK_HALF_WIDTH / pixel[1], max(int(origin[1]), 0))
    neck = neck | (body & ~visible)
    head_solid = Solid(inflate(head, pixel[0], HEAD_THICKNESS), HEAD_MIDDLE)
    torso_solid = Solid(inflate(body, pixel[1], TORSO_THICKNESS, TORSO_FLATNESS), TORSO_MIDDLE, TORSO_LEAN)
    neck_solid = Solid(inflate(neck, pixel[1], TORSO_THICKNESS, NECK_ROUNDNESS), NECK_MIDDLE)
    return (
        distance_volume(head_box, config.resolution, camera, [head_solid]),
        distance_volume(torso_box, config.resolution, camera, [torso_solid, neck_solid]),
    )


class BodyProxies(nn.Module):
    """The proxies of all participants, and what they cost.

    Nothing here is stored in checkpoints: training builds it from the labels, rendering does not need it.

    Args:
        config: the strengths.
        head_boxes, torso_boxes: of every participant.
        volumes: (head's, torso's) distance volumes of every participant.
        cameras: that recorded them.
    """

    def __init__(
        self,
        config: GeometryPriorConfig,
        head_boxes: Float[Tensor, "p 2 3"],
        torso_boxes: Float[Tensor, "p 2 3"],
        volumes: List[Tuple[Float[np.ndarray, "z y x"], Float[np.ndarray, "z y x"]]],
        cameras: List[Camera],
    ):
        super().__init__()
        self.config = config
        boxes = torch.stack([head_boxes, torso_boxes], dim=1)
        distances = torch.from_numpy(np.stack([np.stack(pair) for pair in volumes])).float()
        cameras_to_person = torch.from_numpy(np.stack([camera.camera_to_person for camera in cameras])).float()
        self.register_buffer("boxes", boxes.to(boxes.device), persistent=False)
        self.register_buffer("distances", distances.to(boxes.device), persistent=False)
        self.register_buffer("cameras", cameras_to_person.to(boxes.device), persistent=False)

    def distance(self, part: int, points: Float[Tensor, "*n 3"], participant: int) -> Float[Tensor, "*n"]:
        """Signed distance, in metres, to the surface of a part (0 the head, 1 the torso), in the part's own space.

        Outside the part's box it is that of the box's surface or more.
        """
        low, high = self.boxes[participant, part]
        unit = 2.0 * (points - low) / (high - low) - 1.0
        volume = self.distances[participant, part][None, None]
        found = F.grid_sample(volume, unit.view(1, 1, 1, -1, 3), padding_mode="border", align_corners=False).view(
            points.shape[:-1]
        )
        beyond = (0.5 * (unit.abs() - 1.0).clamp_min(0.0) * (high - low)).norm(dim=-1)
        return found + beyond

    def shell(self, part: int, participant: int, resolution: int) -> Bool[Tensor, " cells"]:
        """Cells of an occupancy grid that hold a point not too far outside or below the surface."""
        low, high = self.boxes[participant, part]
        centres = torch.from_numpy(cell_centres(np.stack([low.cpu().numpy(), high.cpu().numpy()]), resolution))
        distance = self.distance(part, centres.float().to(low.device), participant)
        reach = 0.5 * float((high - low).norm()) / resolution
        config = self.config
        outside, inside = (
            (config.torso_outside, config.torso_inside) if part else (config.head_outside, config.head_inside)
        )
        return (distance < outside + reach) & (distance > -inside - reach)

    def surface_loss(
        self, part: int, points: Float[Tensor, "n 3"], weights: Float[Tensor, " n"], participant: int
    ) -> Float[Tensor, ""]:
        """Σ w d² over samples, times the part's coefficient: how far from the surface light stops, m²."""
        coefficient = self.config.torso_surface_coefficient if part else self.config.head_surface_coefficient
        if coefficient <= 0:
            return weights.new_zeros(())
        distance = self.distance(part, points.detach(), participant).clamp(-0.05, 0.05)
        return coefficient * (weights * distance.square()).sum()

    def virtual_rays(self, participant: int, count: int) -> Tuple[Float[Tensor, "rays 3"], Float[Tensor, "rays 3"]]:
        """(origins, unit directions), in person space, of a virtual camera's rays to points about head and torso.

        The camera is the recording one swung about the person space's origin.
        """
        device = self.boxes.device
        limits = torch.tensor([self.config.virtual_yaw, self.config.virtual_pitch], device=device).deg2rad()
        yaw, pitch = (2.0 * torch.rand(2, device=device) - 1.0) * limits
        origin = turn(yaw, pitch) @ self.cameras[participant, :, 3]
        low, high = self.boxes[participant, :, 0], self.boxes[participant, :, 1]
        part = torch.randint(2, (count,), device=device)
        points = low[part] + torch.rand(count, 3, device=device) * (high - low)[part]
        return origin.expand(count, 3), F.normalize(points - origin, dim=-1)

    def turned(self, rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "3 3"]:
        """A head's rotation with a random turn and nod beyond it."""
        yaw, pitch = (2.0 * torch.rand(2, device=rotation.device) - 1.0) * np.deg2rad(self.config.virtual_turn)
        return rotation @ turn(yaw, pitch)

    def targets(
        self,
        origins: Float[Tensor, "rays 3"],
        directions: Float[Tensor, "rays 3"],
        head_origins: Float[Tensor, "rays 3"],
        head_directions: Float[Tensor, "rays 3"],
        participant: int,
    ) -> Tuple[Bool[Tensor, " rays"], Bool[Tensor, " rays"]]:
        """(rays that must stop, rays that must pass); the others graze the proxy, and may do either.

        Args:
            origins, directions: in person space.
            head_origins, head_directions: the same rays in head space.
        """
        closest = torch.full_like(origins[:, 0], torch.inf)
        middle = origins.norm(dim=-1, keepdim=True)
        steps = torch.linspace(-0.35, 0.35, 72, device=origins.device)
        t = (middle + steps)[..., None]
        for part, (o, d) in enumerate(((head_origins, head_directions), (origins, directions))):
            points = o[:, None] + t * d[:, None]
            closest = torch.minimum(closest, self.distance(part, points, participant).amin(dim=-1))
        return closest < -self.config.core, closest > self.config.clearance


def turn(yaw: Float[Tensor, ""], pitch: Float[Tensor, ""]) -> Float[Tensor, "3 3"]:
    """Rotation that carries +z to the direction of that yaw and pitch (radians; see nerf/view_range.py)."""
    zero, one = torch.zeros_like(yaw), torch.ones_like(yaw)
    around_y = torch.stack([yaw.cos(), zero, yaw.sin(), zero, one, zero, -yaw.sin(), zero, yaw.cos()]).view(3, 3)
    around_x = torch.stack([one, zero, zero, zero, pitch.cos(), pitch.sin(), zero, -pitch.sin(), pitch.cos()])
    return around_y @ around_x.view(3, 3)


def yaw_pitch_roll(rotation: Float[Tensor, "3 3"]) -> Float[Tensor, "3"]:
    """Intrinsic Euler angles about y, x, z, as ConversationSignals has them."""
    return torch.stack(
        [
            torch.atan2(rotation[0, 2], rotation[2, 2]),
            torch.asin((-rotation[1, 2]).clamp(-1.0, 1.0)),
            torch.atan2(rotation[1, 0], rotation[1, 1]),
        ]
    )


def opacity_loss(
    opacity: Float[Tensor, " rays"], stop: Bool[Tensor, " rays"], go: Bool[Tensor, " rays"]
) -> Float[Tensor, ""]:
    """Cross entropy of opacities against having to stop or to pass, the mean over rays that have to do either."""
    decided = (stop | go).float()
    error = -torch.log(torch.where(stop, opacity, 1.0 - opacity).clamp(1e-3, 1.0))
    return (error * decided).sum() / decided.sum().clamp_min(1.0)
