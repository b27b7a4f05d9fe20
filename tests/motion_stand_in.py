"""Windows of invented conversations whose listeners answer the speaker by a simple rule, for tests of training."""

from typing import Sequence

import numpy as np
import torch

from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, EXPRESSION_NAMES
from dialogue_nerfstudio.motion.model import MotionStatistics
from dialogue_nerfstudio.motion.windows import MotionWindows, Side

E = len(EXPRESSION_NAMES)


def invented_statistics(num_people: int = 2) -> MotionStatistics:
    """Numbers of plausible sizes."""

    def pair(size: int, deviation: float) -> torch.Tensor:
        return torch.stack([torch.zeros(size), torch.full((size,), deviation)])

    return MotionStatistics(
        head_pose=pair(6, 0.05),
        head_velocity=pair(6, 0.01),
        expression=pair(E, 0.1),
        blink=pair(2, 0.2),
        gaze=pair(4, 0.1),
        prosody=torch.tensor([[0.05, 0.05], [0.05, 0.05]]),
        num_people=num_people,
        expression_basis=EXPRESSION_BASIS,
        expression_names=EXPRESSION_NAMES,
    )


class InventedWindows:
    """Two people who take turns; the listener's pitch is half of the speaker's loudness 10 frames ago, plus a quarter
    of the speaker's pitch then, plus noise."""

    def __init__(self, window: int, needs_mel: bool = False, frames: int = 1500, seed: int = 0):
        rng = np.random.default_rng(seed)
        self.statistics = invented_statistics()
        self._window, self._mel, self._frames = window, needs_mel, frames
        turns = (np.arange(frames) // 100 + rng.integers(2)) % 2
        self._speaking = np.stack([turns == 0, turns == 1])
        loudness = np.convolve(rng.random(frames + 24), np.ones(25) / 25, "valid") * (rng.random(frames) > 0.1)
        prosody = np.where(self._speaking, loudness * 0.2, 0.0)
        self._prosody = np.stack([prosody, prosody], axis=-1).astype(np.float32)
        noise = np.apply_along_axis(
            lambda x: np.convolve(x, np.ones(9) / 9, "valid"), 1, rng.normal(size=(12, frames + 8))
        )
        pose = 0.02 * noise.reshape(2, 6, frames).transpose(0, 2, 1)
        self.expected = np.zeros_like(pose)
        for frame in range(10, frames):
            for own in range(2):
                if not self._speaking[own, frame]:
                    past = frame - 10
                    answer = 0.5 * prosody[1 - own, past] + 0.25 * pose[1 - own, past, 0]
                    self.expected[own, frame, 0] = answer
                    pose[own, frame, 0] += answer
        self._pose = pose.astype(np.float32)

    def __len__(self) -> int:
        return 2 * (self._frames // self._window)

    def draw(self, count: int, rng: np.random.Generator) -> MotionWindows:
        starts = 5 * rng.integers((self._frames - self._window) // 5 + 1, size=count)
        return self._windows(rng.integers(2, size=count), starts)

    def batch(self, numbers: Sequence[int]) -> MotionWindows:
        own, place = np.divmod(np.asarray(numbers), self._frames // self._window)
        return self._windows(own, place * self._window)

    def _windows(self, own: np.ndarray, starts: np.ndarray) -> MotionWindows:
        return MotionWindows(
            own=self._side(own, starts),
            partner=self._side(1 - own, starts),
            person=torch.from_numpy(own.copy()),
            partner_person=torch.from_numpy(1 - own),
            start=torch.from_numpy(starts.copy()),
        )

    def _side(self, who: np.ndarray, starts: np.ndarray) -> Side:
        frames = starts[:, None] + np.arange(self._window)
        rows = who[:, None]
        shape = (len(who), self._window)
        return Side(
            head_pose=torch.from_numpy(self._pose[rows, frames]),
            expression=torch.zeros(*shape, E),
            blink=torch.zeros(*shape, 2),
            gaze=torch.zeros(*shape, 4),
            prosody=torch.from_numpy(self._prosody[rows, frames]),
            speaking=torch.from_numpy(self._speaking[rows, frames]),
            mel=torch.full((len(who), round(self._window * 3.2), 80), -1.0) if self._mel else None,
            expected_head_pose=torch.from_numpy(self.expected[rows, frames].astype(np.float32)),
        )
