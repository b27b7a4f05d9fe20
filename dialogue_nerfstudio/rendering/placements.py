"""Where participants sit in the scene they share.

Convention: a placement maps person space to scene space, x_scene = R x_person + t, rigidly, in metres. Scene space is
x right, y up, z towards the viewer of the default view; a person looks along its own +z.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.rendering.rays import rays_into

CONVERSATION_DISTANCE = 1.2
"""Metres between the heads of two people who talk face to face."""
SEAT_SPACING = 0.8
"""Metres between the heads of people side by side: shoulders do not touch."""
PLACEMENTS = ("arc", "side-by-side", "facing", "around")
"""Names of the arrangements below."""


@dataclass(frozen=True, eq=False)
class Placement:
    """One participant's rigid transform, person → scene."""

    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, "3"]

    @staticmethod
    def identity() -> "Placement":
        """Person space is scene space."""
        return Placement(torch.eye(3), torch.zeros(3))

    @staticmethod
    def at(position: Sequence[float], yaw: float = 0.0) -> "Placement":
        """Head at `position` (m), turned by `yaw` (rad) about +y: π/2 looks along +x."""
        sine, cosine = math.sin(yaw), math.cos(yaw)
        rotation = torch.tensor([[cosine, 0.0, sine], [0.0, 1.0, 0.0], [-sine, 0.0, cosine]])
        return Placement(rotation, torch.tensor([float(component) for component in position]))

    def to(self, device: torch.device | str) -> "Placement":
        """The same placement on another device."""
        return Placement(self.rotation.to(device), self.translation.to(device))

    def to_scene(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of person space in scene space."""
        return points @ self.rotation.T + self.translation

    def to_person(self, points: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3"]:
        """Points of scene space in person space."""
        return (points - self.translation) @ self.rotation

    def rays_to_person(
        self, origins: Float[Tensor, "num_rays 3"], directions: Float[Tensor, "num_rays 3"]
    ) -> tuple[Float[Tensor, "num_rays 3"], Float[Tensor, "num_rays 3"]]:
        """Rays of scene space in person space; depths along them stay what they are."""
        return rays_into(origins, directions, self.rotation, self.translation)

    def camera_to_scene(self, camera_to_person: Float[Tensor, "3 4"]) -> Float[Tensor, "3 4"]:
        """A camera of person space, e.g. the recording one, in scene space."""
        return torch.cat(
            [self.rotation @ camera_to_person[:, :3], self.to_scene(camera_to_person[:, 3])[:, None]], dim=-1
        )


def side_by_side(num_people: int, spacing: float = SEAT_SPACING) -> list[Placement]:
    """People in a row along x, the first on the viewer's left, all looking at the viewer.

    Raises:
        DialogueError: no people, or no room between them.
    """
    _require_people(num_people, 1)
    _require_distance("spacing", spacing)
    return [Placement.at(((index - (num_people - 1) / 2) * spacing, 0.0, 0.0)) for index in range(num_people)]


def arc(num_people: int, spacing: float = SEAT_SPACING, turn: float = math.radians(25.0)) -> list[Placement]:
    """People on an arc that is open towards the viewer, the first on the viewer's left: the outermost are turned
    inwards by `turn` (rad), so that two people half face each other and half the viewer.

    Everybody looks at one point; with a turn of 0 this is `side_by_side`. Neighbours are `spacing` apart.

    Raises:
        DialogueError: no people, no room between them, or a turn that is not between 0 and 90°.
    """
    _require_people(num_people, 1)
    _require_distance("spacing", spacing)
    if not 0 <= turn <= math.pi / 2:
        raise DialogueError(f"People can be turned inwards by 0 to 90 degrees, not {math.degrees(turn):g}.")
    if num_people == 1 or turn < 1e-4:
        return side_by_side(num_people, spacing)
    step = 2.0 * turn / (num_people - 1)
    radius = spacing / (2.0 * math.sin(step / 2.0))
    yaws = [turn - index * step for index in range(num_people)]
    # The middle of the row of heads stays at the scene's origin.
    depth = sum(math.cos(yaw) for yaw in yaws) / num_people
    return [Placement.at((-radius * math.sin(yaw), 0.0, radius * (depth - math.cos(yaw))), yaw) for yaw in yaws]


def around(num_people: int, radius: float) -> list[Placement]:
    """People on a circle, all looking at its middle; the first on the viewer's left, then clockwise seen from above.

    Raises:
        DialogueError: fewer than two people, or no room between them.
    """
    _require_people(num_people, 2)
    _require_distance("radius", radius)
    placements = []
    for index in range(num_people):
        # The direction from the seat to the middle; the seat itself lies opposite.
        yaw = math.pi / 2 - 2 * math.pi * index / num_people
        placements.append(Placement.at((-radius * math.sin(yaw), 0.0, -radius * math.cos(yaw)), yaw))
    return placements


def facing(distance: float = CONVERSATION_DISTANCE) -> list[Placement]:
    """Two people face to face along x, the first on the viewer's left.

    Raises:
        DialogueError: no distance between them.
    """
    _require_distance("distance", distance)
    return around(2, distance / 2)


def _require_people(num_people: int, least: int) -> None:
    if num_people < least:
        raise DialogueError(f"This arrangement needs at least {least} people, not {num_people}.")


def _require_distance(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise DialogueError(f"The {name} between people must be a positive number of metres, not {value}.")


# Bodies that must not meet --------------------------------------------------------------------------------------------


def boxes_meet(
    first: Placement, first_box: Float[Tensor, "2 3"], second: Placement, second_box: Float[Tensor, "2 3"]
) -> bool:
    """Whether two people's boxes, each upright in its own person space, intersect: the separating axis theorem for
    people who are turned about y only."""
    one, other = (p.to_scene(_corners(box)) for p, box in ((first, first_box), (second, second_box)))
    axes = [first.rotation[:, 1], *(p.rotation[:, axis] for p in (first, second) for axis in (0, 2))]
    spans = [(one @ axis, other @ axis) for axis in axes]
    return not any(bool(a.max() <= b.min()) or bool(b.max() <= a.min()) for a, b in spans)


def _corners(box: Float[Tensor, "2 3"]) -> Float[Tensor, "8 3"]:
    return torch.stack([torch.stack([box[i, 0], box[j, 1], box[k, 2]]) for i in (0, 1) for j in (0, 1) for k in (0, 1)])


def clearance(
    first: Placement,
    first_boxes: Sequence[Float[Tensor, "2 3"]],
    second: Placement,
    second_boxes: Sequence[Float[Tensor, "2 3"]],
) -> float:
    """The least distance between two people's heads, in metres, at which no box of the one meets one of the other, as
    the second moves straight away from the first (along +x if both are in one place) without turning; found to a
    millimetre."""
    away = second.translation - first.translation
    length = float(away.norm())
    direction = away / length if length > 1e-6 else torch.tensor([1.0, 0.0, 0.0])

    def meets(distance: float) -> bool:
        moved = Placement(second.rotation, first.translation + distance * direction)
        return any(boxes_meet(first, a, moved, b) for a in first_boxes for b in second_boxes)

    low, high = 0.0, 0.1
    while meets(high):
        low, high = high, 2.0 * high
    while high - low > 1e-3:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return high
