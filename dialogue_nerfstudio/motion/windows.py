"""Batches of training windows: one person (`own`) and whoever they talk with (`partner`), as tensors.

Conventions. B windows of T frames at 25 fps, E expression coefficients, S mel steps. Every window is seen from one
person; in a conversation of more than two the partner is, frame by frame, whoever else speaks (the last who spoke in a
pause). head_pose is axis-angle (radians) and translation (metres), as in `conversation.motion.Motion`.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Dict, Optional, Protocol, Sequence, Union, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, cat

if TYPE_CHECKING:
    from dialogue_nerfstudio.motion.model import MotionStatistics


@dataclass
class Side:
    """One side of a conversation over a window."""

    head_pose: Float[Tensor, "B T 6"]
    expression: Float[Tensor, "B T E"]
    blink: Float[Tensor, "B T 2"]
    gaze: Float[Tensor, "B T 4"]
    """Left yaw, left pitch, right yaw, right pitch, radians in head space."""
    prosody: Float[Tensor, "B T 2"]
    """Zero-crossing rate and root mean square of this person's own track."""
    speaking: Bool[Tensor, "B T"]
    mel: Optional[Float[Tensor, "B S 80"]] = None
    """This person's own spectrogram, where the dataset was asked for it; S = round(T / fps · 80),
    and windows start at multiples of `signals.BLOCK`."""
    expected_head_pose: Optional[Float[Tensor, "B T 6"]] = None
    """Simulation only: the conditional mean of head_pose given everything a predictor could know, the ceiling."""


@dataclass
class MotionWindows:
    """A batch of windows."""

    own: Side
    partner: Side
    person: Int[Tensor, " B"]
    """The dataset's number of `own`."""
    partner_person: Int[Tensor, " B"]
    start: Int[Tensor, " B"]
    """First frame in its conversation."""

    def to(self, device: Union[str, torch.device]) -> "MotionWindows":
        """The same batch on a device."""
        return MotionWindows(
            own=_side_to(self.own, device),
            partner=_side_to(self.partner, device),
            person=self.person.to(device),
            partner_person=self.partner_person.to(device),
            start=self.start.to(device),
        )


@runtime_checkable
class WindowSource(Protocol):
    """What the trainer draws windows from; `motion.dataset.MotionDataset` is the one on disk.

    One split, one length of window. Nothing of it is random but what `draw` is given, so that a run that resumes sees
    the same windows as one that was never stopped.
    """

    statistics: "MotionStatistics"
    """Of the training split, whichever this is."""

    def __len__(self) -> int:
        """How many windows the split has, laid end to end for every person."""

    def draw(self, count: int, rng: np.random.Generator) -> MotionWindows:
        """Windows that begin anywhere in the split, on the CPU."""

    def batch(self, numbers: Sequence[int]) -> MotionWindows:
        """The named ones of the windows that lie end to end, on the CPU."""


def join_windows(batches: Sequence[MotionWindows]) -> MotionWindows:
    """Batches as one; what not all of them have, none has."""

    def sides(name: str) -> Side:
        columns = {
            entry.name: [getattr(getattr(batch, name), entry.name) for batch in batches] for entry in fields(Side)
        }
        return Side(
            **{key: None if any(part is None for part in parts) else cat(parts) for key, parts in columns.items()}
        )

    return MotionWindows(
        own=sides("own"),
        partner=sides("partner"),
        person=cat([batch.person for batch in batches]),
        partner_person=cat([batch.partner_person for batch in batches]),
        start=cat([batch.start for batch in batches]),
    )


def _side_to(side: Side, device: Union[str, torch.device]) -> Side:
    moved: Dict[str, Optional[Tensor]] = {}
    for entry in fields(side):
        value = getattr(side, entry.name)
        moved[entry.name] = None if value is None else value.to(device)
    return Side(**moved)
