"""Motion generators whose output is known, in place of trained ones."""

from typing import Sequence

import numpy as np
from scipy.spatial.transform import Rotation

from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.motion.generator import Character, MotionGenerator, MotionParts, MotionStream
from dialogue_nerfstudio.motion.signals import MotionSignals


class LoudnessNods(MotionGenerator):
    """Heads that nod by the loudness of everybody, `late` frames after it is heard; `scale` widens it, `seed` turns it.

    Each frame is a function of that frame's sound alone, so that what comes out cannot depend on blocks.
    """

    provides = ("head_pose",)

    def __init__(self, late: int = 0, scale: float = 1.0):
        self.late, self.scale = late, scale

    def begin(self, characters: Sequence[Character], seed: int) -> MotionStream:
        return _Nodding(self, characters, seed)


class _Nodding(MotionStream):
    def __init__(self, generator: LoudnessNods, characters: Sequence[Character], seed: int):
        self._generator, self._characters = generator, characters
        self._turn = 0.01 * seed
        self._heard = np.zeros(0, np.float32)
        self._frame = 0

    def advance(self, signals: MotionSignals) -> MotionParts:
        self._heard = np.concatenate([self._heard, signals.prosody[..., 1].sum(axis=0)])
        return self._give(max(0, len(self._heard) - self._generator.late))

    def finish(self) -> MotionParts:
        return self._give(len(self._heard))

    def _give(self, count: int) -> MotionParts:
        frames = self._frame + np.arange(count)
        loudness, self._heard = self._heard[:count], self._heard[count:]
        self._frame += count
        parts = {}
        for number, character in enumerate(self._characters):
            start = character.reference.head_pose[-1]
            pose = np.tile(start, (count, 1)).astype(np.float32)
            pose[:, 0] += self._generator.scale * (0.05 * np.sin(0.3 * frames + number) + loudness)
            pose[:, 1] += self._turn
            parts[character.id] = {"head_pose": pose}
        return parts


class OpenMouths(MotionGenerator):
    """Jaws that open while somebody speaks, and eyes that close while they do not."""

    provides = ("expression", "blink")

    def __init__(self, size: int = len(EXPRESSION_NAMES)):
        self.size = size

    def begin(self, characters: Sequence[Character], seed: int) -> MotionStream:
        return _Opening(self.size)


class _Opening(MotionStream):
    def __init__(self, size: int):
        self._size = size

    def advance(self, signals: MotionSignals) -> MotionParts:
        parts = {}
        for number, name in enumerate(signals.participant_ids):
            expression = np.zeros((signals.num_frames, self._size), np.float32)
            expression[:, 0] = signals.speaking[number]
            blink = np.repeat(1.0 - signals.speaking[number][:, None], 2, axis=1).astype(np.float32)
            parts[name] = {"expression": expression, "blink": blink}
        return parts

    def finish(self) -> MotionParts:
        return {}


def recorded_person(name: str, num_frames: int = 1500, seed: int = 0) -> Character:
    """A minute of somebody who turns about, blinks every four seconds, and looks at one place in the room."""
    rng = np.random.default_rng(seed)
    times = np.arange(num_frames) / 25.0
    angles = np.stack([np.sin(times * rng.uniform(0.3, 2.0) + rng.uniform(0, 6)) for _ in range(6)], axis=1)
    pose = angles * [0.08, 0.15, 0.05, 0.01, 0.005, 0.01] + 0.001 * rng.normal(size=(num_frames, 6))
    sight = np.array([0.3, -0.1, 1.0]) / np.linalg.norm([0.3, -0.1, 1.0])
    seen = Rotation.from_rotvec(pose[:, :3]).inv().apply(sight)
    gaze = np.repeat(np.stack([np.arctan2(seen[:, 0], seen[:, 2]), np.arcsin(seen[:, 1])], axis=1)[:, None], 2, axis=1)
    blink = np.full((num_frames, 2), 0.05)
    for start in range(40, num_frames - 10, 100):
        blink[start : start + 5] = np.array([0.4, 0.9, 1.0, 0.7, 0.3])[:, None]
    speaking = (times // 5) % 2 == 0
    expression = np.zeros((num_frames, len(EXPRESSION_NAMES)))
    expression[:, 0] = np.where(speaking, rng.uniform(0.2, 1.0, num_frames), 0.03)
    expression[:, 18] = 0.2
    motion = Motion(
        pose.astype(np.float32),
        expression.astype(np.float32),
        blink.astype(np.float32),
        gaze.astype(np.float32),
        np.zeros((num_frames, 3), np.float32),
    )
    return Character(name, motion, speaking)
