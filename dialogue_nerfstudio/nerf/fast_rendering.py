"""Whole pictures on a CPU through the compiled march: which models it can render, their sources, and camera rays kept
from frame to frame.

Conventions: as in `nerf.model`; sources stand in the space that the rays are given in, by default person space.
"""

import functools
import sys
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Tuple

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from dialogue_nerfstudio.fields.field_programs import head_is_known, head_program, torso_is_known, torso_program
from dialogue_nerfstudio.rendering.fast_march import FastSource, fast_march, fast_march_is_available, fits

if TYPE_CHECKING:
    from dialogue_nerfstudio.nerf.model import DialogueModel, FrameConditions

MAX_CACHED_RAYS = 2**21
"""Rays kept for cameras that stand still; 40 bytes each."""


def why_not_fast(model: "DialogueModel") -> Optional[str]:
    """What keeps a model from the compiled march, in a few words; None where nothing does."""
    if not model.config.fast_inference:
        return "fast_inference is off"
    if model.device.type != "cpu":
        return f"on {model.device.type}"
    if not fast_march_is_available():
        return "numba is not installed"
    if not head_is_known(model.head_field):
        return "the head field has parts that the compiled march does not know"
    if not torso_is_known(model.torso_field):
        return "the torso field has parts that the compiled march does not know"
    if not fits(
        [model.config.head_samples, model.config.torso_samples], [*model.head_occupancy, *model.torso_occupancy]
    ):
        return "more than 64 samples a ray"
    return None


@functools.cache
def _announce(reason: Optional[str]) -> None:
    """Says once, on stderr, what renders whole pictures."""
    print(f"rendering: {'compiled march (numba)' if reason is None else f'torch ({reason})'}", file=sys.stderr)


def fast_sources(
    model: "DialogueModel",
    conditions: "FrameConditions",
    rotation: Optional[Float[Tensor, "3 3"]] = None,
    translation: Optional[Float[Tensor, "3"]] = None,
) -> Optional[List[FastSource]]:
    """[head, torso] of a participant at the one frame of `conditions`, for `fast_march`; None where `why_not_fast`.

    The sources of several participants can be marched together, each under its placement.

    Args:
        rotation, translation: person space → the space of the rays; the identity if not given.
    """
    reason = "training" if model.training or len(conditions.et) != 1 else why_not_fast(model)
    if reason is None and conditions.signal.appearance is not None:
        reason = "training"
    _announce(reason)
    if reason is not None:
        return None
    row = conditions.participant
    rotation = torch.eye(3) if rotation is None else rotation
    translation = torch.zeros(3) if translation is None else translation
    head = FastSource(
        program=head_program(model.head_field, row, conditions.signal),
        rotation=rotation @ conditions.rotation[0],
        translation=rotation @ conditions.translation[0] + translation,
        occupancy=model.head_occupancy[row],
        num_samples=model.config.head_samples,
    )
    torso = FastSource(
        program=torso_program(model.torso_field, row, conditions.et),
        rotation=rotation,
        translation=translation,
        occupancy=model.torso_occupancy[row],
        num_samples=model.config.torso_samples,
    )
    return [head, torso]


def fast_outputs(
    model: "DialogueModel",
    origins: Float[Tensor, "R 3"],
    directions: Float[Tensor, "R 3"],
    sources: List[FastSource],
    background: Float[Tensor, "R 3"],
    background_depth: Float[Tensor, " R"],
) -> Dict[str, Tensor]:
    """What `DialogueModel.render_rays` returns at inference, for heads and torsos in turn in `sources`."""
    seen = fast_march(
        origins,
        directions,
        sources,
        background,
        weight_threshold=model.config.colour_threshold,
        transmittance_threshold=model.config.termination_threshold,
    )
    return {
        "rgb": seen.rgb,
        "depth": (seen.accumulation * seen.depth + (1.0 - seen.accumulation) * background_depth).unsqueeze(-1),
        "accumulation": seen.accumulation.unsqueeze(-1),
        "head": seen.opacity[:, 0::2].sum(dim=-1, keepdim=True),
        "torso": seen.opacity[:, 1::2].sum(dim=-1, keepdim=True),
    }


@dataclass(frozen=True)
class PictureRays:
    """The rays of a picture, row after row, in person space, and what is behind the person."""

    height: int
    width: int
    origins: Float[Tensor, "R 3"]
    directions: Float[Tensor, "R 3"]
    background: Float[Tensor, "R 3"]
    distance: Float[Tensor, " R"]


class RayCache:
    """The rays of the cameras met last: those of a video stand still, and casting rays is a fifth of a frame.

    Args:
        cast: makes the rays of (camera, participant).
    """

    def __init__(self, cast: Callable[[Cameras, int], PictureRays]) -> None:
        self._cast = cast
        self._kept: OrderedDict[Tuple, PictureRays] = OrderedDict()

    def __call__(self, camera: Cameras, participant: int) -> PictureRays:
        """The rays of a camera with a participant's plate behind; read only."""
        key = _camera_key(camera, participant)
        rays = self._kept.pop(key, None) or self._cast(camera, participant)
        self._kept[key] = rays
        while len(self._kept) > 1 and sum(len(kept.origins) for kept in self._kept.values()) > MAX_CACHED_RAYS:
            self._kept.popitem(last=False)
        return rays


def _camera_key(camera: Cameras, participant: int) -> Tuple:
    parts = [camera.camera_to_worlds, camera.fx, camera.fy, camera.cx, camera.cy, camera.width, camera.height]
    parts += [camera.camera_type] + ([] if camera.distortion_params is None else [camera.distortion_params])
    return (participant, str(camera.device), *(tuple(part.reshape(-1).tolist()) for part in parts))
