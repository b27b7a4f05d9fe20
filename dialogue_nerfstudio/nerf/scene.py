"""The scene that avatars share: where everybody is placed, what stands behind them, and pictures of all together.

Conventions: scene space as in `rendering.placements`, metres, y up. P people in a scene, each a row of the model's
participants with a placement; a picture's rays are cast once in scene space and carried to each person's space and head
space. Body bounds are boxes [2, 3] in person space.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Sequence, Tuple

import torch
import yaml
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from dialogue_nerfstudio.conversation import DialogueError
from dialogue_nerfstudio.nerf.fast_rendering import fast_sources
from dialogue_nerfstudio.rendering.backdrop import FARTHEST, Backdrop, BackdropConfig, Footprint
from dialogue_nerfstudio.rendering.boxes import intersect_box
from dialogue_nerfstudio.rendering.fast_march import FastSource, fast_march
from dialogue_nerfstudio.rendering.joint import spread
from dialogue_nerfstudio.rendering.march import Source, march
from dialogue_nerfstudio.rendering.occupancy import OccupancyGrid
from dialogue_nerfstudio.rendering.placements import (
    CONVERSATION_DISTANCE,
    PLACEMENTS,
    Placement,
    arc,
    around,
    boxes_meet,
    clearance,
    facing,
    side_by_side,
)
from dialogue_nerfstudio.rendering.rays import rays_into

if TYPE_CHECKING:
    from dialogue_nerfstudio.nerf.model import DialogueModel, Drive

SPACING = 0.6
"""Metres between the heads of neighbours, where their shoulders leave room."""
ROOM = 1.05
"""Neighbours who would touch are set apart by this times what keeps them clear of each other."""


@dataclass
class SceneConfig:
    """Where people are and what stands behind them."""

    placement: str = "arc"
    """arc: half facing each other, half the viewer, because only their fronts were recorded; side-by-side; facing: two
    people face to face; around: on a circle; or a JSON or YAML file with position and yaw of each."""
    spacing: Optional[float] = None
    """Metres between neighbours' heads; as their shoulders need it, at least 0.6, if not given (facing: 1.2)."""
    turn: float = 25.0
    """Degrees by which the outermost people of an arc are turned inwards."""
    backdrop: BackdropConfig = field(default_factory=BackdropConfig)
    """Ground and backdrop."""


@dataclass(frozen=True, eq=False)
class Body:
    """The space that a person's head and torso take in person space, metres."""

    head: Float[Tensor, "2 3"]
    torso: Float[Tensor, "2 3"]
    cut: float
    """y at which the recording's lower edge cuts the front of the torso."""

    @property
    def boxes(self) -> Tuple[Float[Tensor, "2 3"], Float[Tensor, "2 3"]]:
        return self.head, self.torso


def occupied_bounds(grid: OccupancyGrid) -> Float[Tensor, "2 3"]:
    """The box of a grid's occupied cells; the whole box where none is."""
    resolution = grid.config.resolution
    occupied = grid.occupied.cpu().view(resolution, resolution, resolution).nonzero().flip(-1).float()
    box = grid.box.cpu()
    if not len(occupied):
        return box.clone()
    cell = (box[1] - box[0]) / resolution
    return torch.stack([box[0] + occupied.amin(dim=0) * cell, box[0] + (occupied.amax(dim=0) + 1.0) * cell])


def body_of(model: "DialogueModel", participant: int) -> Body:
    """What a participant takes of the space around, by the occupancy of their fields; the head in its mean pose."""
    torso = occupied_bounds(model.torso_occupancy[participant])
    camera = model.cameras[participant]
    transform = torch.tensor(camera.camera_to_person, dtype=torch.float32)
    # The ray through the middle of the lowest row of pixels, where it meets the front of the torso.
    lowest = torch.tensor([0.0, (camera.cy - camera.height) / camera.focal, -1.0]) @ transform[:, :3].T
    reach = (torso[1, 2] - transform[2, 3]) / lowest[2]
    cut = float(transform[1, 3] + reach * lowest[1])
    return Body(occupied_bounds(model.head_occupancy[participant]), torso, max(cut, float(torso[0, 1])))


class Scene:
    """People in their places, before their backdrop.

    Args:
        rows: the model's participants in the scene.
        names: their ids, for sentences.
        bodies: theirs.
        placements: theirs.
        config: of the backdrop.

    Raises:
        DialogueError: two people overlap; it says how far apart they must be.
    """

    def __init__(
        self,
        rows: Sequence[int],
        names: Sequence[str],
        bodies: Sequence[Body],
        placements: Sequence[Placement],
        config: SceneConfig,
    ) -> None:
        self.rows, self.names, self.bodies, self.placements = list(rows), list(names), list(bodies), list(placements)
        self._check_room()
        # The highest cut of all, so that nobody's lower end is seen above the ground.
        ground = max(float(p.translation[1]) + body.cut for p, body in zip(placements, bodies, strict=True))
        footprints = [_footprint(placement, body) for placement, body in zip(placements, bodies, strict=True)]
        self.backdrop = Backdrop(config.backdrop, ground, footprints)

    def _check_room(self) -> None:
        for second in range(len(self.rows)):
            for first in range(second):
                places = (self.placements[first], self.placements[second])
                boxes = (self.bodies[first].boxes, self.bodies[second].boxes)
                if any(boxes_meet(places[0], a, places[1], b) for a in boxes[0] for b in boxes[1]):
                    distance = float((places[0].translation - places[1].translation).norm())
                    needed = clearance(places[0], boxes[0], places[1], boxes[1])
                    raise DialogueError(
                        f"The places of {self.names[first]} and {self.names[second]} overlap: their heads are "
                        f"{distance:.2f} m apart and must be at least {math.ceil(100 * needed) / 100:.2f} m; move one "
                        "of them, or give more spacing."
                    )

    def heads(self) -> Float[Tensor, "P 3"]:
        """Where everybody's head is, in its mean pose."""
        return torch.stack([placement.translation for placement in self.placements])

    def to(self, device: torch.device) -> "Scene":
        """The same scene for rays on another device."""
        moved = object.__new__(Scene)
        moved.__dict__.update(self.__dict__)
        moved.placements = [placement.to(device) for placement in self.placements]
        feet = [Footprint(f.centre.to(device), f.axes.to(device), f.radii.to(device)) for f in self.backdrop.footprints]
        moved.backdrop = Backdrop(self.backdrop.config, self.backdrop.height, feet)
        return moved

    def statement(self) -> Dict[str, Dict[str, Any]]:
        """id → position (m) and yaw (degrees), for the record."""
        return {
            name: {
                "position": [round(float(value), 4) for value in placement.translation],
                "yaw": round(math.degrees(math.atan2(placement.rotation[0, 2], placement.rotation[2, 2])), 2),
            }
            for name, placement in zip(self.names, self.placements, strict=True)
        }


def _footprint(placement: Placement, body: Body) -> Footprint:
    middle = placement.to_scene(body.torso.mean(dim=0))
    half = 0.5 * (body.torso[1] - body.torso[0])
    return Footprint(
        centre=middle[[0, 2]],
        axes=torch.stack([placement.rotation[[0, 2], 0], placement.rotation[[0, 2], 2]]),
        radii=1.15 * half[[0, 2]] + 0.03,
    )


# Who is where ---------------------------------------------------------------------------------------------------------


def make_scene(
    model: "DialogueModel",
    placement: Optional[str] = None,
    participants: Optional[Sequence[str]] = None,
    placements: Optional[Sequence[Placement]] = None,
    spacing: Optional[float] = None,
) -> Scene:
    """The scene of a model's avatars.

    Args:
        placement: a name of `PLACEMENTS` or a file; the model's configuration decides if not given.
        participants: ids of those in it, from the viewer's left; everybody if not given.
        placements: of each, in that order, instead of `placement`.
        spacing: between neighbours, metres; the model's configuration decides if not given.

    Raises:
        DialogueError: an unknown participant or placement, a file that cannot be used, or people who overlap.
    """
    config: SceneConfig = model.config.scene
    if spacing is not None:
        config = replace(config, spacing=spacing)
    names = list(participants) if participants else list(model.participant_ids)
    for name in names:
        if name not in model.participant_ids:
            raise DialogueError(f"there is no avatar '{name}'; there are {', '.join(model.participant_ids)}.")
    rows = [model.participant_ids.index(name) for name in names]
    bodies = [body_of(model, row) for row in rows]
    if placements is None:
        placements = choose_placements(placement or config.placement, names, bodies, config)
    elif len(placements) != len(names):
        raise DialogueError(f"there are {len(placements)} placements for {len(names)} people ({', '.join(names)}).")
    return Scene(rows, names, bodies, placements, config)


def choose_placements(
    placement: str, names: Sequence[str], bodies: Sequence[Body], config: SceneConfig
) -> List[Placement]:
    """The placements that a name or a file stands for; without a spacing of its own, as close as shoulders allow.

    Raises:
        DialogueError: no such arrangement, or it is not for so many people.
    """
    if placement not in PLACEMENTS:
        if Path(placement).suffix.lower() in (".json", ".yml", ".yaml"):
            return read_placements(Path(placement), names)
        raise DialogueError(
            f"there is no placement '{placement}'; choose {', '.join(PLACEMENTS)}, or a .json or .yml file."
        )
    count = len(names)
    if placement == "facing" and count != 2:
        raise DialogueError(f"facing is for two people, not {count}; choose around, or name two participants.")
    if count == 1:
        return [Placement.identity()]

    def arrange(spacing: float) -> List[Placement]:
        if placement == "arc":
            return arc(count, spacing, math.radians(config.turn))
        if placement == "side-by-side":
            return side_by_side(count, spacing)
        if placement == "facing":
            return facing(spacing)
        return around(count, spacing / (2.0 * math.sin(math.pi / count)))

    if config.spacing is not None:
        return arrange(config.spacing)
    spacing = CONVERSATION_DISTANCE if placement == "facing" else SPACING
    placements = arrange(spacing)
    # Neighbours' turns do not depend on the spacing, so what one pair needs is the spacing that it needs.
    for first, second in zip(range(count), range(1, count), strict=False):
        places = placements[first], placements[second]
        spacing = max(spacing, ROOM * clearance(places[0], bodies[first].boxes, places[1], bodies[second].boxes))
    return arrange(spacing)


def read_placements(path: Path, names: Sequence[str]) -> List[Placement]:
    """Placements from a JSON or YAML file: {id: {position: [x, y, z], yaw: degrees}}, or a list of such in the order of
    the participants. y and yaw may be left out (position: [x, z], yaw 0).

    Raises:
        DialogueError: the file is missing or damaged, lacks somebody, or holds no numbers.
    """
    if not path.is_file():
        raise DialogueError(f"placement {path}: there is no such file; choose {', '.join(PLACEMENTS)}, or write one.")
    try:
        text = path.read_text(encoding="utf-8")
        entries = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise DialogueError(f"placement {path} is not readable: {' '.join(str(error).split())}.") from error
    if isinstance(entries, list):
        if len(entries) < len(names):
            raise DialogueError(f"placement {path} places {len(entries)} people, but there are {len(names)}.")
        entries = dict(zip(names, entries, strict=False))
    if not isinstance(entries, dict):
        raise DialogueError(f"placement {path} must hold a list, or ids, each with a position and a yaw.")
    placements = []
    for name in names:
        if name not in entries:
            raise DialogueError(f"placement {path} does not say where {name} is.")
        placements.append(_placement_of(entries[name], f"placement {path}, {name}"))
    return placements


def _placement_of(entry: Any, where: str) -> Placement:
    position = entry.get("position") if isinstance(entry, dict) else None
    yaw = entry.get("yaw", 0.0) if isinstance(entry, dict) else None
    numbers = [*position, yaw] if isinstance(position, list) and len(position) in (2, 3) else [None]
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and math.isfinite(n) for n in numbers):
        raise DialogueError(f"{where}: a position of two (x, z) or three numbers and a yaw in degrees are needed.")
    place = position if len(position) == 3 else [position[0], 0.0, position[1]]
    return Placement.at(place, math.radians(yaw))


# Pictures -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def render_scene(
    model: "DialogueModel", camera: Cameras, frame: int, scene: Scene, drive: Optional["Drive"] = None
) -> Dict[str, Float[Tensor, "H W _"]]:
    """Everybody in the scene at a frame, from a camera in scene space, composited together.

    Args:
        model: in eval mode.
        camera: one camera, of any nerfstudio kind.
        frame: of the timeline that `set_signals` set.
        scene: from `make_scene`.
        drive: what moves the faces; None for the panel's choice.

    Returns:
        rgb [H, W, 3], depth, accumulation, head and torso [H, W, 1] (of everybody together), and opacity [H, W, P],
        what is seen of each person.

    Raises:
        DialogueError: there is no such frame.
    """
    if not 0 <= frame < model.num_frames:
        raise DialogueError(f"there is no frame {frame}; the timeline has {model.num_frames}.")
    position = camera.camera_to_worlds.reshape(3, 4)[:, 3].cpu()
    departures = [
        model.seen_views.check(
            row,
            placement.to_person(position).numpy(),
            model.signal_rotation[row, frame].cpu().numpy(),
            model.signal_translation[row, frame].cpu().numpy(),
            announce=not model.panel.has_viewer,
        )
        for row, placement in zip(scene.rows, scene.placements, strict=True)
    ]
    model.panel.show_departures([sentence for sentence in departures if sentence is not None])
    scene = scene.to(model.device)
    camera = camera.to(model.device)
    camera.metadata = None
    bundle = camera.generate_rays(camera_indices=0, keep_shape=True)
    height, width = bundle.origins.shape[:2]
    origins, directions = bundle.origins.view(-1, 3), bundle.directions.view(-1, 3)
    frames = torch.tensor([frame], device=model.device)
    conditions = [model.conditions(row, frames, drive or model.panel.drive) for row in scene.rows]

    rgb, ground = scene.backdrop(origins, directions)
    outputs = {
        "rgb": rgb,
        "depth": ground.clamp(max=FARTHEST).unsqueeze(-1),
        "accumulation": rgb.new_zeros(len(rgb), 1),
        "head": rgb.new_zeros(len(rgb), 1),
        "torso": rgb.new_zeros(len(rgb), 1),
        "opacity": rgb.new_zeros(len(rgb), len(scene.rows)),
    }
    compiled = _compiled_sources(model, scene, conditions)
    if compiled is not None:
        seen = fast_march(
            origins,
            directions,
            compiled,
            rgb,
            weight_threshold=model.config.colour_threshold,
            transmittance_threshold=model.config.termination_threshold,
            stop=ground,
        )
        opacity = seen.opacity.view(len(rgb), len(scene.rows), 2)
        outputs = _outputs(seen.rgb, seen.depth, seen.accumulation, opacity, ground)
        return {name: value.view(height, width, -1) for name, value in outputs.items()}
    meets = torch.stack(
        [
            _meets(model, condition, placement, origins, directions)
            for condition, placement in zip(conditions, scene.placements, strict=True)
        ]
    )
    live = meets.any(dim=0).nonzero().squeeze(-1)
    # Splitting nothing would give one piece of nothing.
    for rays in live.split(model.config.eval_num_rays_per_chunk) if len(live) else ():
        seen = _march(
            model, scene, conditions, meets[:, rays], origins[rays], directions[rays], ground[rays], rgb[rays]
        )
        for name, value in seen.items():
            outputs[name][rays] = value
    return {name: value.view(height, width, -1) for name, value in outputs.items()}


def _meets(
    model: "DialogueModel",
    conditions: Any,
    placement: Placement,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
) -> Tensor:
    """Which rays meet a person's boxes: [R] bool."""
    o, d = placement.rays_to_person(origins, directions)
    near, far = intersect_box(o, d, *model.torso_occupancy[conditions.participant].box)
    o, d = rays_into(o, d, conditions.rotation[0], conditions.translation[0])
    head_near, head_far = intersect_box(o, d, *model.head_occupancy[conditions.participant].box)
    return (far > near) | (head_far > head_near)


def _march(
    model: "DialogueModel",
    scene: Scene,
    conditions: Sequence[Any],
    meets: Tensor,
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    ground: Float[Tensor, " R"],
    backdrop: Float[Tensor, "R 3"],
) -> Dict[str, Tensor]:
    """Some rays through everybody."""
    # From the nearest person on, because what is hidden behind earlier sources is not evaluated.
    distance = [float((origins[0] - placement.translation).norm()) for placement in scene.placements]
    order = sorted(range(len(conditions)), key=lambda index: distance[index])
    sources: List[Source] = []
    for index in order:
        rays = meets[index].nonzero().squeeze(-1)
        o, d = scene.placements[index].rays_to_person(origins[rays], directions[rays])
        of_frame = torch.zeros_like(rays)
        for source in model.sources(o, d, of_frame, conditions[index]):
            sources.append(spread(source, rays, len(origins), stop=ground))
    seen = march(
        sources,
        backdrop,
        weight_threshold=model.config.colour_threshold,
        transmittance_threshold=model.config.termination_threshold,
    ).composite
    parts = torch.empty(len(origins), len(order), 2, device=origins.device)
    parts[:, order] = seen.opacity.view(len(origins), len(order), 2)
    return _outputs(seen.rgb, seen.depth, seen.accumulation, parts, ground)


def _compiled_sources(model: "DialogueModel", scene: Scene, conditions: Sequence[Any]) -> Optional[List[FastSource]]:
    """Head and torso of everybody for the compiled march; None where it cannot render them."""
    sources: List[FastSource] = []
    for condition, placement in zip(conditions, scene.placements, strict=True):
        pair = fast_sources(model, condition, placement.rotation, placement.translation)
        if pair is None:
            return None
        sources += pair
    return sources


def _outputs(
    rgb: Float[Tensor, "R 3"],
    depth: Float[Tensor, " R"],
    accumulation: Float[Tensor, " R"],
    opacity: Float[Tensor, "R P 2"],
    ground: Float[Tensor, " R"],
) -> Dict[str, Tensor]:
    return {
        "rgb": rgb,
        "depth": (accumulation * depth + (1.0 - accumulation) * ground.clamp(max=FARTHEST)).unsqueeze(-1),
        "accumulation": accumulation.unsqueeze(-1),
        "head": opacity[..., 0].sum(dim=1, keepdim=True),
        "torso": opacity[..., 1].sum(dim=1, keepdim=True),
        "opacity": opacity.sum(dim=-1),
    }
