"""The head and torso of a participant as sources of the march: which rays meet them where, and their fields there.

Conventions: as in `nerf.model`; N samples, packed, each with its ray.
"""

from typing import TYPE_CHECKING, Dict, List, Tuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.march import Source
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid
from dialogue_nerfstudio.rendering.rays import rays_into
from dialogue_nerfstudio.rendering.sampling import stratified

if TYPE_CHECKING:
    from dialogue_nerfstudio.nerf.model import DialogueModel, GridConditions


def head_source(
    model: "DialogueModel",
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    ray_frames: Int[Tensor, " R"],
    conditions: "GridConditions",
    regularised: Dict[str, Tensor],
    fixed: bool = False,
) -> Source:
    """A participant's head, with the rays carried into head space; `fixed` as in `lit_interval`."""
    participant, signal, num_frames = conditions.participant, conditions.signal, len(conditions.et)
    head_origins, head_directions = rays_into(
        origins, directions, conditions.rotation[ray_frames], conditions.translation[ray_frames]
    )

    def density(points: Tensor, rays: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...]]:
        counts = samples_per_frame(ray_frames, rays, num_frames)
        value, geometry, gates = model.head_field.density(points, participant, signal, counts)
        if model.training and len(gates):
            regularised["gate_mean"], regularised["gate_count"] = gates.mean(), torch.tensor(float(len(gates)))
        return value, (geometry, gates)

    def colour(geometry: Tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
        counts = samples_per_frame(ray_frames, rays, num_frames)
        return model.head_field.colour(*geometry, head_directions, rays, participant, signal, counts)

    occupancy = model.head_occupancy[participant]
    near, far = lit_interval(occupancy, head_origins.detach(), head_directions.detach(), fixed)
    return Source(head_origins, head_directions, near, far, model.config.head_samples, density, colour, occupancy)


def torso_source(
    model: "DialogueModel",
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    ray_frames: Int[Tensor, " R"],
    conditions: "GridConditions",
    regularised: Dict[str, Tensor],
    fixed: bool = False,
) -> Source:
    """A participant's neck and torso, in person space; `fixed` as in `lit_interval`."""
    participant, num_frames = conditions.participant, len(conditions.et)

    def density(points: Tensor, rays: Tensor) -> Tuple[Tensor, Tuple[Tensor, ...]]:
        counts = samples_per_frame(ray_frames, rays, num_frames)
        value, geometry, shift = model.torso_field.density(points, participant, conditions.et, counts)
        if model.training and len(shift):
            regularised["shift_squared"] = shift.square().sum(dim=-1).mean()
            regularised["shift_count"] = torch.tensor(float(len(shift)))
        return value, (geometry,)

    def colour(geometry: Tuple[Tensor, ...], _: Tensor, rays: Tensor) -> Tensor:
        appearance = conditions.signal.appearance
        if appearance is not None:
            appearance = appearance.index_select(0, ray_frames.index_select(0, rays))
        return model.torso_field.colour(*geometry, participant, appearance)

    occupancy = model.torso_occupancy[participant]
    near, far = lit_interval(occupancy, origins, directions, fixed)
    return Source(origins, directions, near, far, model.config.torso_samples, density, colour, occupancy)


def lit_interval(
    occupancy: OccupancyGrid, origins: Float[Tensor, "R 3"], directions: Float[Tensor, "R 3"], fixed: bool = False
) -> Tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """Where rays are within a box between its first and its last occupied cell.

    Looking cells up is far cheaper than evaluating fields there, and the samples that follow lie closer together.

    Args:
        fixed: look along every ray, not only along those that hit the box: more work, but of a size that is known
            without waiting for the device (`rendering.fixed_march`).
    """
    near, far = intersect_box(origins, directions, occupancy.box[0], occupancy.box[1])
    if fixed:
        hit = far > near
        tight_near, tight_far = _occupied_interval(occupancy, origins, directions, near, torch.where(hit, far, near))
        return torch.where(hit, tight_near, near), torch.where(hit, tight_far, far)
    hit = (far > near).nonzero().squeeze(-1)
    tight = _occupied_interval(occupancy, origins[hit], directions[hit], near[hit], far[hit])
    return near.index_copy(0, hit, tight[0]), far.index_copy(0, hit, tight[1])


def _occupied_interval(
    occupancy: OccupancyGrid,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    near: Float[Tensor, " R"],
    far: Float[Tensor, " R"],
) -> Tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """From the first to the last occupied one of as many bins of [near, far] as a grid has cells along an axis; empty
    where none is."""
    probes = occupancy.config.resolution
    t, width = stratified(near, far, probes)
    occupied = occupancy.query_along(origins, directions, t)
    last = probes - 1 - occupied.flip(-1).byte().argmax(dim=-1)
    first = occupied.byte().argmax(dim=-1)
    bin_width, any_occupied = width[:, 0], occupied.any(dim=-1)
    tight_near = near + first * bin_width
    return tight_near, torch.where(any_occupied, near + (last + 1) * bin_width, tight_near)


def samples_per_frame(ray_frames: Int[Tensor, " R"], rays: Int[Tensor, " N"], num_frames: int) -> List[int]:
    """How many packed samples belong to each frame, for rays sorted by frame."""
    if num_frames == 1:
        return [len(rays)]
    return torch.bincount(ray_frames[rays], minlength=num_frames).tolist()
