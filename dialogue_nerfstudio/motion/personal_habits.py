"""What a person does where no generator says it: movements taken from their own recording.

Conventions. T frames at the reference's fps; head poses axis-angle and translation; gaze `[T, 2, 2]` yaw and pitch of
each eye in head space, so that a line of sight is (sin yaw cos pitch, sin pitch, cos yaw cos pitch); blinks `[T, 2]`, 0
open to 1 closed. Every source is a stream: frames are asked for in order, in pieces of any length.
"""

from typing import List, Sequence, Tuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.motion.generator import Character

FEWEST_BLINKS = 3
"""Recorded blinks from which a person's intervals are taken."""
BLINK_CLOSED = 0.4
"""Mean closure of both lids from which on it may be a blink."""
BLINK_LONGEST = 1.0
"""Seconds after which closed eyes are no blink."""
BLINK_BEFORE, BLINK_AFTER = 5, 9
"""Frames kept of a recorded blink before and after its middle."""
TYPICAL_INTERVAL = 3.0
"""Seconds between blinks of nobody in particular (about 20 a minute in conversation, Bentivoglio et al. 1997)."""
SHORTEST_INTERVAL = 0.4
"""Seconds between the middles of two blinks at least."""
EYE_REACH = np.radians(35.0)
"""How far an eye turns in its socket, either way."""
FEWEST_LISTENING = 25
"""Frames of listening that tell a resting face."""


def resting_expression(character: Character) -> Float32[np.ndarray, " E"]:
    """The person's face while they listen: medians; of somebody who hardly listened, of all frames."""
    listening = character.reference.expression[~character.was_speaking]
    if len(listening) < FEWEST_LISTENING:
        listening = character.reference.expression
    return np.median(listening, axis=0).astype(np.float32)


class RecordedPose:
    """The person's recorded head poses, to and fro, from the first one on."""

    statement = "the person's own recorded poses, to and fro"

    def __init__(self, character: Character):
        self._poses = np.asarray(character.reference.head_pose, np.float32)
        self._next = 0

    def frames(self, count: int) -> Float32[np.ndarray, "count 6"]:
        """The next frames."""
        frames = self._next + np.arange(count)
        self._next += count
        last = len(self._poses) - 1
        if last == 0:
            return np.repeat(self._poses, count, axis=0)
        position = frames % (2 * last)
        return self._poses[np.minimum(position, 2 * last - position)]


class HeldGaze:
    """Eyes that keep looking where the person looked most, while the head moves (the vestibulo-ocular reflex)."""

    statement = "held on where the person looked most, against the head's motion"

    def __init__(self, character: Character):
        reference = character.reference
        open_eyes = np.asarray(reference.blink).mean(axis=1) < BLINK_CLOSED
        if not open_eyes.any():
            open_eyes[:] = True
        rotation = Rotation.from_rotvec(reference.head_pose[open_eyes, :3].astype(np.float64)).as_matrix()
        sight = np.einsum("tij,tej->tei", rotation, lines_of_sight(reference.gaze[open_eyes]))
        target = np.median(sight, axis=0)
        self._target = target / np.linalg.norm(target, axis=-1, keepdims=True)

    def frames(self, head_pose: Float[np.ndarray, "T 6"]) -> Float32[np.ndarray, "T 2 2"]:
        """Gaze in the head for these poses."""
        rotation = Rotation.from_rotvec(head_pose[:, :3].astype(np.float64)).as_matrix()
        sight = np.einsum("tji,ej->tei", rotation, self._target)
        yaw = np.arctan2(sight[..., 0], sight[..., 2])
        pitch = np.arcsin(np.clip(sight[..., 1], -1.0, 1.0))
        return np.clip(np.stack([yaw, pitch], axis=-1), -EYE_REACH, EYE_REACH).astype(np.float32)


def lines_of_sight(gaze: Float[np.ndarray, "*batch 2"]) -> Float[np.ndarray, "*batch 3"]:
    """Unit vectors of yaw and pitch."""
    yaw, pitch = gaze[..., 0].astype(np.float64), gaze[..., 1].astype(np.float64)
    return np.stack([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)], axis=-1)


class DrawnBlinks:
    """Blinks as the person blinks: intervals drawn from the distribution of the recorded ones, at the recorded rate,
    each blink one of the recorded ones; those of nobody in particular where fewer than FEWEST_BLINKS were recorded."""

    def __init__(self, character: Character, seed: Sequence[int]):
        reference = character.reference
        self._fps, self._rng = reference.fps, np.random.default_rng(seed)
        blink = np.asarray(reference.blink, np.float64)
        middles = blink_middles(blink, self._fps)
        self._rest = np.median(blink[blink.mean(axis=1) < BLINK_CLOSED], axis=0) if len(blink) else np.zeros(2)
        self._rest = np.nan_to_num(self._rest)
        self._shapes = _recorded_shapes(blink, middles, self._rest)
        enough = len(middles) >= FEWEST_BLINKS
        if enough:
            intervals = np.diff(middles) / self._fps
            # Intervals that the recording's ends cut off are missing: the rate puts that right.
            self._intervals = intervals * (len(blink) / self._fps / len(middles)) / intervals.mean()
            self.statement = "drawn from the person's own recorded blinks and intervals"
        else:
            self._intervals = TYPICAL_INTERVAL * np.exp(0.6 * np.linspace(-1.5, 1.5, 9)) / np.exp(0.18)
            self.statement = f"typical ones: fewer than {FEWEST_BLINKS} blinks of the person were recorded"
        if not self._shapes:
            self._shapes = [np.repeat(_typical_shape()[:, None], 2, axis=1)]
        self._position = 0
        self._pending: List[Tuple[int, np.ndarray]] = []
        """(first frame, closure beyond rest) of blinks that have begun or will begin."""
        self._latest = -self._rng.uniform() * self._draw()
        """Middle (frame) of the last blink that was drawn."""

    def _draw(self) -> float:
        seconds = float(np.quantile(self._intervals, self._rng.uniform()))
        return max(seconds, SHORTEST_INTERVAL) * self._fps

    def frames(self, count: int) -> Float32[np.ndarray, "count 2"]:
        """The next frames."""
        start, stop = self._position, self._position + count
        while self._latest - BLINK_BEFORE < stop:
            self._latest += self._draw()
            shape = self._shapes[int(self._rng.integers(len(self._shapes)))]
            self._pending.append((round(self._latest) - BLINK_BEFORE, shape))
        closure = np.zeros((count, 2))
        for first, shape in self._pending:
            low, high = max(first, start), min(first + len(shape), stop)
            if low < high:
                rows = slice(low - start, high - start)
                closure[rows] = np.maximum(closure[rows], shape[low - first : high - first])
        self._pending = [(first, shape) for first, shape in self._pending if first + len(shape) > stop]
        self._position = stop
        return np.clip(self._rest + (1.0 - self._rest) * closure, 0.0, 1.0).astype(np.float32)


def blink_middles(blink: Float[np.ndarray, "T 2"], fps: float) -> Int[np.ndarray, " n"]:
    """Middle frames of the runs in which the mean of both lids reaches BLINK_CLOSED, longer ones left out."""
    closed: Bool[np.ndarray, " T"] = np.concatenate([[False], blink.mean(axis=1) >= BLINK_CLOSED, [False]])
    starts, stops = np.flatnonzero(~closed[:-1] & closed[1:]), np.flatnonzero(closed[:-1] & ~closed[1:])
    brief = stops - starts <= BLINK_LONGEST * fps
    return ((starts + stops - 1) // 2)[brief]


def _recorded_shapes(
    blink: Float[np.ndarray, "T 2"], middles: Int[np.ndarray, " n"], rest: Float[np.ndarray, "2"]
) -> List[Float[np.ndarray, "frames 2"]]:
    """Closure beyond rest, 0 … 1, around blinks that lie wholly within the recording and apart from others."""
    shapes = []
    for index, middle in enumerate(middles.tolist()):
        first, last = middle - BLINK_BEFORE, middle + BLINK_AFTER
        others = np.delete(middles, index)
        if first < 0 or last > len(blink) or (np.abs(others - middle) < BLINK_BEFORE + BLINK_AFTER).any():
            continue
        shape = np.clip((blink[first:last] - rest) / np.maximum(1.0 - rest, 1e-3), 0.0, 1.0)
        # From rest to rest, whatever the lids did meanwhile.
        fade = np.minimum(np.arange(1, len(shape) + 1), np.arange(len(shape), 0, -1)) / 2
        shapes.append(shape * np.minimum(fade, 1.0)[:, None])
    return shapes


def _typical_shape() -> Float[np.ndarray, " frames"]:
    """Lids that close within 0.1 s and open within 0.2 s at 25 fps."""
    frames = np.arange(-BLINK_BEFORE, BLINK_AFTER)
    return np.where(frames <= 0, np.clip(1 + frames / 3, 0, 1), np.clip(1 - frames / 6, 0, 1))
