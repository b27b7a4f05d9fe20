"""Windows of simulated speech whose mouths are known, made in memory: what the motion models train on, without
files."""

from functools import lru_cache
from typing import Sequence

import numpy as np
import torch

from dialogue_nerfstudio.conversation.acoustics import mel_spectrogram, prosody_features
from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.roles import segments_to_frames
from dialogue_nerfstudio.conversation.simulate.dialogue import Dialogue, act_dialogue, speak_dialogue
from dialogue_nerfstudio.motion.face_codes import FaceCodesConfig
from dialogue_nerfstudio.motion.lip_sync import LipSync, LipSyncConfig
from dialogue_nerfstudio.motion.model import MotionStatistics
from dialogue_nerfstudio.motion.signals import MotionSignals
from dialogue_nerfstudio.motion.windows import MotionWindows, Side

FPS = 25.0

SMALL_LIP_SYNC = LipSyncConfig(
    face_codes=FaceCodesConfig(mouth_size=20, eye_size=12, widths=(32,)), code_size=24, audio_width=32, window_frames=50
)
"""A lip-sync model that a test can train."""


def flat_statistics() -> MotionStatistics:
    """Means 0 and deviations 1 of everything."""

    def unit(size: int) -> torch.Tensor:
        return torch.stack([torch.zeros(size), torch.ones(size)])

    sizes = (6, 6, len(EXPRESSION_NAMES), 2, 4, 2)
    return MotionStatistics(*(unit(size) for size in sizes), 2, EXPRESSION_BASIS, EXPRESSION_NAMES)


class SpokenConversation:
    """A simulated conversation of two: everybody's motion, track and phones."""

    def __init__(self, seed: int, num_frames: int):
        self.dialogue: Dialogue = act_dialogue(2, num_frames, FPS, seed)
        self.tracks, _ = speak_dialogue(self.dialogue, round(num_frames / FPS * 16_000), seed)
        self.signals = MotionSignals(
            ("p0", "p1"),
            np.stack([prosody_features(track, 16_000, num_frames) for track in self.tracks]),
            np.stack([mel_spectrogram(track)[: round(num_frames / FPS * 80)] for track in self.tracks]),
            segments_to_frames(self.dialogue.segments, ("p0", "p1"), num_frames, FPS).T,
        )

    def middles(self, person: int, phones: Sequence[str]) -> np.ndarray:
        """Frames that show the middles of a person's phones of those names."""
        times = [
            turn.start + 0.5 * (phone.start + phone.end)
            for turn in self.dialogue.turns
            if turn.participant == person
            for phone in turn.utterance.phones
            if phone.name in phones
        ]
        frames = np.floor(np.array(times) * FPS).astype(int)
        return frames[frames < self.signals.num_frames]


class SpokenWindows:
    """Windows of some conversations, as a trainer draws them."""

    def __init__(self, conversations: Sequence[SpokenConversation], window: int):
        self._conversations, self._window = conversations, window
        self.statistics = flat_statistics()

    def draw(self, count: int, rng: np.random.Generator) -> MotionWindows:
        """Windows of either person, beginning anywhere at a multiple of five frames."""
        last = (self._conversations[0].signals.num_frames - self._window) // 5
        picks = [
            (
                self._conversations[rng.integers(len(self._conversations))],
                int(rng.integers(2)),
                5 * int(rng.integers(last + 1)),
            )
            for _ in range(count)
        ]
        number = torch.arange(count)
        return MotionWindows(
            own=self._side(picks, 0),
            partner=self._side(picks, 1),
            person=number,
            partner_person=number,
            start=torch.tensor([start for _, _, start in picks]),
        )

    def _side(self, picks, other: int) -> Side:
        rows = []
        for conversation, person, start in picks:
            who, frames = (person + other) % 2, slice(start, start + self._window)
            performance, heard = (
                conversation.dialogue.performances[who],
                conversation.signals.frames(frames.start, frames.stop),
            )
            rows.append(
                (
                    performance.head_pose[frames],
                    performance.expression[frames],
                    performance.blink[frames],
                    performance.gaze[frames].reshape(-1, 4),
                    heard.prosody[who],
                    heard.speaking[who],
                    heard.mel[who],
                )
            )
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
        return Side(*(column if column.dtype == torch.bool else column.float() for column in columns))


def train_briefly(model: torch.nn.Module, windows: SpokenWindows, steps: int, count: int, rate: float = 2e-3) -> None:
    """A few steps of Adam, seeded, as the trainer would take them."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        sum(model.losses(windows.draw(count, rng), step).values()).backward()
        optimizer.step()
        schedule.step()
    model.eval()


@lru_cache(maxsize=1)
def trained_lip_sync() -> LipSync:
    """A lip-sync model after a short training on a minute of speech; to be read only."""
    torch.manual_seed(0)
    model = SMALL_LIP_SYNC.build(flat_statistics())
    train_briefly(model, SpokenWindows([SpokenConversation(seed, 500) for seed in (0, 1, 2)], 50), 180, 6, rate=4e-3)
    return model
