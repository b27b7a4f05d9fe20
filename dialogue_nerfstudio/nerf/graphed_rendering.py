"""Whole pictures of one participant on a GPU, recorded once a camera and replayed for every frame of the timeline.

Frames differ in their conditions only (pose, signal): these are copied to where the recording reads them.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Dict, List, Optional, Tuple

import torch
from jaxtyping import Float
from torch import Tensor

from dialogue_nerfstudio.nerf.fast_rendering import PictureRays
from dialogue_nerfstudio.rendering.march import Source
from dialogue_nerfstudio.rendering.recorded_march import RecordedMarch

if TYPE_CHECKING:
    from dialogue_nerfstudio.nerf.model import DialogueModel, GridConditions

MOST_RECORDINGS = 8
"""Pictures (participant and camera) that are kept recorded; each holds the memory of one frame."""


@dataclass
class RecordedPicture:
    """A camera's picture of a participant."""

    rays: PictureRays
    conditions: "GridConditions"
    """What the recording reads."""
    march: RecordedMarch


class GraphedPictures:
    """Renders pictures through recordings, which are made as cameras are met."""

    def __init__(self, model: "DialogueModel") -> None:
        self._model = model
        self._recordings: Dict[Tuple[int, int], RecordedPicture] = {}
        self._met: Optional[PictureRays] = None

    def pays(self, rays: PictureRays) -> bool:
        """Whether this camera was asked for before: a recording costs as much as several frames, and cameras that move
        need each only once."""
        known = rays is self._met or any(recording.rays is rays for recording in self._recordings.values())
        self._met = rays
        return known

    def forget(self) -> None:
        """Drops what was recorded, because weights moved elsewhere."""
        self._recordings.clear()
        self._met = None

    @torch.no_grad()
    def __call__(self, rays: PictureRays, conditions: "GridConditions") -> Dict[str, Float[Tensor, "R _"]]:
        """What `DialogueModel.render_rays` returns at inference, for a picture of the one frame of `conditions`."""
        # The recording keeps the rays, so that their id stays theirs.
        key = (id(rays), conditions.participant)
        if key not in self._recordings:
            while len(self._recordings) >= MOST_RECORDINGS:
                self._recordings.pop(next(iter(self._recordings)))
            self._recordings[key] = self._record(rays, _copied(conditions))
        recording = self._recordings[key]
        _copy_into(recording.conditions, conditions)
        seen = recording.march()
        depth = seen.accumulation * seen.depth + (1.0 - seen.accumulation) * rays.distance
        # Copies: the next frame writes to the recording's own.
        return {
            "rgb": seen.rgb.clone(),
            "depth": depth.unsqueeze(-1),
            "accumulation": seen.accumulation.unsqueeze(-1).clone(),
            "head": seen.opacity[:, :1].clone(),
            "torso": seen.opacity[:, 1:].clone(),
        }

    def _record(self, rays: PictureRays, conditions: "GridConditions") -> RecordedPicture:
        model = self._model
        frames = torch.zeros(len(rays.origins), dtype=torch.long, device=rays.origins.device)

        def sources() -> List[Source]:
            return model.sources(rays.origins, rays.directions, frames, conditions, fixed=True)

        march = RecordedMarch(
            sources, rays.background, model.config.colour_threshold, model.config.termination_threshold
        )
        return RecordedPicture(rays, conditions, march)


def _copied(value: Any) -> Any:
    """A dataclass of tensors (and of such dataclasses), with tensors of its own."""
    if isinstance(value, Tensor):
        return value.clone()
    if is_dataclass(value):
        return replace(value, **{entry.name: _copied(getattr(value, entry.name)) for entry in fields(value)})
    return value


def _copy_into(target: Any, source: Any) -> None:
    """The tensors of one such dataclass into those of another of the same shapes."""
    for entry in fields(target):
        own, other = getattr(target, entry.name), getattr(source, entry.name)
        if isinstance(own, Tensor):
            own.copy_(other)
        elif is_dataclass(own):
            _copy_into(own, other)
