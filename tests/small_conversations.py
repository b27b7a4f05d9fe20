"""Conversations of two in memory for tests of motion models, a source of windows of them, and a short training."""

from dataclasses import dataclass
from typing import List, Sequence

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d

from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.motion.generator import Character
from dialogue_nerfstudio.motion.model import MotionModel, MotionStatistics
from dialogue_nerfstudio.motion.signals import MotionSignals
from dialogue_nerfstudio.motion.windows import MotionWindows, Side

NUM_PEOPLE = 4
BLINK = np.array([0.05, 0.15, 0.3, 0.9, 1.0, 0.8, 0.4, 0.1], np.float32)
RATES = (0.2, 0.3, 0.4, 0.5)
"""Blinks a second of each person."""


@dataclass
class SmallConversation:
    """Two people, T frames."""

    people: Sequence[int]
    signals: MotionSignals
    head_pose: np.ndarray
    blink: np.ndarray


def small_conversation(number: int, num_frames: int = 1500, seed: int = 0) -> SmallConversation:
    """Heads follow the other's loudness half a second later by a person's own strength, and sway; rests differ."""
    rng = np.random.default_rng([seed, number])
    people = (number % NUM_PEOPLE, (number + 1) % NUM_PEOPLE)
    turn = (np.arange(num_frames) // 75) % 2 == 0
    speaking = np.stack([turn, ~turn])
    loudness = speaking * np.abs(_smooth(rng, (2, num_frames), 4.0)) * 0.1
    prosody = np.stack([0.05 + 0.2 * loudness, loudness], axis=-1).astype(np.float32)
    poses, blinks = [], []
    for side, person in enumerate(people):
        answer = np.roll(gaussian_filter1d(loudness[1 - side], 3.0), 12) * 10.0
        sway = _smooth(rng, (6, num_frames), 15.0).T
        relative = 0.6 * sway + answer[:, None] * np.array([1.5, 0.5, 0.0, 0.0, 1.0, 0.0])
        scale = (0.02 + 0.01 * person) * np.array([1.0, 1.0, 1.0, 0.1, 0.1, 0.1])
        poses.append(relative * scale + 0.1 * person * np.array([1.0, -1.0, 0.0, 0.0, 0.0, 0.0]))
        blinks.append(_blink(rng, RATES[person] / 25.0, num_frames))
    mel = np.full((2, round(num_frames * 3.2), 80), -1.0, np.float32)
    mel += np.repeat(loudness, 16, axis=1)[:, ::5, None].astype(np.float32)
    return SmallConversation(
        people=people,
        signals=MotionSignals(("a", "b"), prosody, mel, speaking),
        head_pose=np.stack(poses).astype(np.float32),
        blink=np.stack(blinks),
    )


def _smooth(rng: np.random.Generator, shape: tuple, deviation: float) -> np.ndarray:
    noise = gaussian_filter1d(rng.standard_normal(shape), deviation, axis=-1)
    return noise * np.sqrt(2.0 * np.sqrt(np.pi) * deviation)


def _blink(rng: np.random.Generator, rate: float, num_frames: int) -> np.ndarray:
    closure = np.zeros(num_frames + len(BLINK), np.float32)
    frame = rng.exponential(1.0 / rate)
    while frame < num_frames:
        closure[int(frame) : int(frame) + len(BLINK)] = BLINK
        frame += 12.0 + rng.exponential(1.0 / rate - 12.0)
    return np.repeat(closure[:num_frames, None], 2, axis=1)


def character(conversation: SmallConversation, side: int, first: int, last: int) -> Character:
    """One of the two, known by the frames first … last − 1."""
    length = last - first
    motion = Motion(
        head_pose=conversation.head_pose[side, first:last],
        expression=np.zeros((length, len(EXPRESSION_NAMES)), np.float32),
        blink=conversation.blink[side, first:last],
        gaze=np.zeros((length, 2, 2), np.float32),
        expression_residual=np.zeros((length, 0), np.float32),
    )
    return Character(("a", "b")[side], motion, conversation.signals.speaking[side, first:last])


class SmallSource:
    """Windows of conversations in memory (`motion.windows.WindowSource`)."""

    def __init__(self, conversations: List[SmallConversation], window: int):
        self.conversations, self.window = conversations, window
        pose = np.concatenate([c.head_pose.reshape(-1, 6) for c in conversations])
        velocity = np.concatenate([np.diff(c.head_pose, axis=1).reshape(-1, 6) for c in conversations])
        prosody = np.concatenate([c.signals.prosody.reshape(-1, 2) for c in conversations])
        self.statistics = MotionStatistics(
            head_pose=_moments(pose),
            head_velocity=_moments(velocity),
            expression=torch.stack([torch.zeros(28), torch.ones(28)]),
            blink=_moments(np.concatenate([c.blink.reshape(-1, 2) for c in conversations])),
            gaze=torch.stack([torch.zeros(4), torch.ones(4)]),
            prosody=_moments(prosody),
            num_people=NUM_PEOPLE,
            expression_basis=EXPRESSION_BASIS,
            expression_names=EXPRESSION_NAMES,
        )
        self._places = [
            (c, side, start)
            for c in conversations
            for side in range(2)
            for start in range(0, c.head_pose.shape[1] - window + 1, window)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def batch(self, numbers: Sequence[int]) -> MotionWindows:
        return self._windows([self._places[number] for number in numbers])

    def draw(self, count: int, rng: np.random.Generator) -> MotionWindows:
        places = []
        for _ in range(count):
            conversation = self.conversations[rng.integers(len(self.conversations))]
            last = (conversation.head_pose.shape[1] - self.window) // 5
            places.append((conversation, int(rng.integers(2)), 5 * int(rng.integers(last + 1))))
        return self._windows(places)

    def _windows(self, places: list) -> MotionWindows:
        def people(other: int) -> torch.Tensor:
            return torch.tensor([conversation.people[(side + other) % 2] for conversation, side, _ in places])

        return MotionWindows(
            own=self._side(places, 0),
            partner=self._side(places, 1),
            person=people(0),
            partner_person=people(1),
            start=torch.tensor([start for _, _, start in places]),
        )

    def _side(self, places: list, other: int) -> Side:
        def stack(read) -> torch.Tensor:
            rows = [read(c)[(side + other) % 2, start : start + self.window] for c, side, start in places]
            return torch.from_numpy(np.stack(rows))

        steps = [
            c.signals.mel[(side + other) % 2, start * 16 // 5 : (start + self.window) * 16 // 5]
            for c, side, start in places
        ]
        return Side(
            head_pose=stack(lambda c: c.head_pose),
            expression=torch.zeros(len(places), self.window, 28),
            blink=stack(lambda c: c.blink),
            gaze=torch.zeros(len(places), self.window, 4),
            prosody=stack(lambda c: c.signals.prosody),
            speaking=stack(lambda c: c.signals.speaking),
            mel=torch.from_numpy(np.stack(steps)),
        )


def _moments(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.stack([values.mean(axis=0), values.std(axis=0)]), dtype=torch.float32)


def train_briefly(model: MotionModel, source: SmallSource, steps: range, batch: int = 16) -> MotionModel:
    """The same model after some steps of Adam, in eval mode."""
    torch.manual_seed(steps.start)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for step in steps:
        optimizer.zero_grad()
        windows = source.draw(batch, np.random.default_rng(step))
        sum(model.losses(windows, step).values()).backward()
        optimizer.step()
    return model.eval()
