"""Blinks as events: found in lid closures, smoothed to a density that a network can learn, and made again from one.

Conventions. Lid closures are `[…, T, 2]`, left and right eye, 0 open to 1 closed, at 25 fps. An event is named by the
frame in which the lids begin to move, `LEAD` frames before they are half closed. A density is in events a frame. An
*example* is the `EXAMPLE` frames of one blink from its beginning on, relative to the open eye: 0 as open as before, 1
closed.
"""

from typing import Tuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

LEAD = 3
"""Frames from the beginning of a blink to the frame in which the lids are half closed."""
EXAMPLE = 16
"""Frames of an example."""
REFRACTORY = 8
"""Fewest frames between the beginnings of two blinks."""
DENSITY_DEVIATION = 3.0
"""Standard deviation of an event's bump in the density, frames."""
_REACH = 9


def blink_starts(closure: Float[Tensor, "*batch T 2"]) -> Bool[Tensor, "*batch T"]:
    """Where blinks begin: `LEAD` frames before the mean of both lids passes one half, from below.

    A blink that is under way in the first frames is none.
    """
    closed = closure.mean(-1) > 0.5
    crossing = closed[..., 1:] & ~closed[..., :-1]
    starts = torch.zeros_like(closed)
    starts[..., : max(closed.shape[-1] - 1 - (LEAD - 1), 0)] = crossing[..., LEAD - 1 :]
    return starts


def event_density(starts: Bool[Tensor, "*batch T"]) -> Float[Tensor, "*batch T"]:
    """Events as bumps of area 1 and `DENSITY_DEVIATION`, cut at three deviations."""
    offsets = torch.arange(-_REACH, _REACH + 1, device=starts.device)
    bump = torch.exp(-0.5 * (offsets / DENSITY_DEVIATION).square())
    flat = starts.reshape(-1, 1, starts.shape[-1]).float()
    return F.conv1d(flat, (bump / bump.sum())[None, None], padding=_REACH).reshape(starts.shape)


def blink_examples(
    closure: Float[Tensor, "B T 2"], starts: Bool[Tensor, "B T"]
) -> Tuple[Float[Tensor, "n example 2"], Int[Tensor, " n"]]:
    """Blinks that lie wholly within a sequence and apart from others.

    Returns:
        (examples, rows): the blinks and the sequence that each is from.
    """
    rows, frames = torch.nonzero(starts, as_tuple=True)
    window = torch.arange(EXAMPLE, device=closure.device)
    inside = frames + EXAMPLE <= closure.shape[1]
    rows, frames = rows[inside], frames[inside]
    alone = starts[rows[:, None], frames[:, None] + window].sum(-1) == 1
    rows, frames = rows[alone], frames[alone]
    examples = closure[rows[:, None], frames[:, None] + window]
    resting = torch.minimum(examples[:, :1], examples[:, -1:])
    return ((examples - resting) / (1.0 - resting).clamp_min(1e-3)).clamp(0.0, 1.0), rows


def open_level(closure: Float[Tensor, "T 2"]) -> Float[Tensor, " 2"]:
    """How far the lids are closed when the person does not blink: the median of each eye, at most 0.5."""
    return closure.median(0).values.clamp(0.0, 0.5)


class BlinkMaker:
    """Makes one person's blinks from a density, block after block.

    The density is integrated, and whenever it has grown by a threshold, a blink begins. For thresholds drawn from an
    exponential distribution this is a Poisson process with the density as its rate; people's blinks come
    more evenly than that, so that the thresholds are Gamma distributed, of mean 1 and shape 4. The density's scale is
    corrected all along so that its mean becomes the person's rate; what it says of *when* stays.

    Args:
        examples: blinks to make, one of which is drawn for each event; without any nobody blinks.
        resting: closures of the open eyes.
        rate: the person's blinks a frame.
        expected_density: the mean density to expect before any was seen.
        noise: draws thresholds and examples.
    """

    memory: float = 1500.0
    """Frames over which the density's mean is followed."""
    prior_frames: float = 250.0
    """For how many frames `expected_density` counts."""

    def __init__(
        self,
        examples: Float32[np.ndarray, "n example 2"],
        resting: Float32[np.ndarray, " 2"],
        rate: float,
        expected_density: float,
        noise: np.random.Generator,
    ):
        self._examples, self._resting, self._rate, self._noise = examples, resting, rate, noise
        self._seen, self._weight = expected_density * self.prior_frames, self.prior_frames
        self._charge, self._threshold = 0.0, self._draw_threshold() * noise.random()
        self._since = REFRACTORY
        self._tail = np.zeros((0, 2), np.float32)

    def advance(self, density: Float32[np.ndarray, " T"]) -> Tuple[Float32[np.ndarray, "T 2"], Bool[np.ndarray, " T"]]:
        """The next frames.

        Args:
            density: events a frame; below 0 counts as 0.

        Returns:
            (closures, starts).
        """
        relative = np.zeros((len(density) + EXAMPLE, 2), np.float32)
        relative[: len(self._tail)] = self._tail
        starts = np.zeros(len(density), dtype=bool)
        for frame, value in enumerate(density):
            starts[frame] = self._step(max(float(value), 0.0))
            if starts[frame]:
                example = self._examples[self._noise.integers(len(self._examples))]
                np.maximum(relative[frame : frame + EXAMPLE], example, out=relative[frame : frame + EXAMPLE])
        self._tail = relative[len(density) :]
        return self._resting + (1.0 - self._resting) * relative[: len(density)], starts

    def _step(self, density: float) -> bool:
        keep = 1.0 - 1.0 / self.memory
        self._seen, self._weight = self._seen * keep + density, self._weight * keep + 1.0
        self._charge += density * self._rate * self._weight / max(self._seen, 1e-9)
        self._since += 1
        if self._charge < self._threshold or self._since < REFRACTORY or not len(self._examples):
            return False
        self._charge -= self._threshold
        self._threshold, self._since = self._draw_threshold(), 0
        return True

    def _draw_threshold(self) -> float:
        return float(self._noise.gamma(4.0, 0.25))


def personal_examples(
    closure: Float32[np.ndarray, "T 2"], others: Float32[np.ndarray, "n example 2"], fewest: int = 3
) -> Float32[np.ndarray, "m example 2"]:
    """A person's own blinks from their recording, or others', if there are any, where it shows fewer than `fewest`."""
    sequence = torch.from_numpy(np.ascontiguousarray(closure))[None]
    own = blink_examples(sequence, blink_starts(sequence))[0].numpy()
    return own if len(own) >= fewest or not len(others) else others


def shrunken_rate(events: float, frames: float, mean: float, prior_frames: float = 250.0) -> float:
    """Somebody's events a frame from a recording that may be short, as if `prior_frames` at the mean came first."""
    return (events + mean * prior_frames) / (frames + prior_frames)


class BlinkBank(torch.nn.Module):
    """Blinks and their rate, collected while training; all of it is in the checkpoint."""

    size: int = 64

    examples: Tensor
    stored: Tensor
    events: Tensor
    frames: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("examples", torch.zeros(self.size, EXAMPLE, 2))
        self.register_buffer("stored", torch.zeros((), dtype=torch.long))
        self.register_buffer("events", torch.zeros((), dtype=torch.float64))
        self.register_buffer("frames", torch.zeros((), dtype=torch.float64))

    def collect(self, closure: Float[Tensor, "B T 2"], starts: Bool[Tensor, "B T"]) -> None:
        """Counts a batch's blinks and stores them, the newest in place of the oldest."""
        self.events += starts.sum()
        # The last frames cannot show a beginning, see `blink_starts`.
        self.frames += starts.shape[0] * (starts.shape[1] - LEAD)
        found = blink_examples(closure, starts)[0][: self.size]
        slots = (self.stored + torch.arange(len(found), device=found.device)) % self.size
        self.examples[slots] = found
        self.stored += len(found)

    def rate(self, least: float = 1e-4) -> float:
        """Blinks a frame over all that was seen."""
        return max(float(self.events / self.frames.clamp_min(1.0)), least)

    def bank(self) -> Float32[np.ndarray, "n example 2"]:
        """The stored blinks; none where training saw none."""
        return self.examples[: min(int(self.stored), self.size)].cpu().numpy()
