"""What motion generators hear of a sound file, cut out block by block: the numbers of the whole, in flat memory.

Conventions as in `motion.signals`. The sound is 16 kHz; it is taken for exactly T / fps seconds long.
"""

from dataclasses import dataclass
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np
from jaxtyping import Bool, Float32

from dialogue_nerfstudio.conversation.acoustics import SAMPLE_RATE, mel_spectrogram, prosody_features
from dialogue_nerfstudio.motion.signals import BLOCK, MEL_RATE, MotionSignals
from dialogue_nerfstudio.process.participant_audio import split_by_role
from dialogue_nerfstudio.process.sound_source import SoundSource

CONTEXT = 5 * BLOCK
"""Frames of sound read before and after a block: more than any window or ramp is wide."""


@dataclass
class HeardConversation:
    """A conversation's sound and who speaks in it."""

    mix: SoundSource
    participant_ids: Tuple[str, ...]
    speaking: Bool[np.ndarray, "T P"]
    own: Optional[Sequence[SoundSource]] = None
    """Everybody's own recording, where there is one of each; else the mix is cut by role."""
    fps: float = 25.0

    @property
    def num_frames(self) -> int:
        return len(self.speaking)

    def signals(self, start: int, stop: int) -> MotionSignals:
        """What generators hear of the frames start … stop − 1; `start` is a multiple of BLOCK."""
        begin, end = max(0, start - CONTEXT), min(self.num_frames, stop + CONTEXT)
        tracks = self._tracks(begin, end)
        steps = slice(round((start - begin) / self.fps * MEL_RATE), round((stop - begin) / self.fps * MEL_RATE))
        frames = slice(start - begin, stop - begin)
        return MotionSignals(
            participant_ids=self.participant_ids,
            prosody=np.stack([prosody_features(t, SAMPLE_RATE, end - begin, self.fps)[frames] for t in tracks]),
            mel=np.stack([mel_spectrogram(track)[steps] for track in tracks]),
            speaking=np.ascontiguousarray(self.speaking[start:stop].T),
            fps=self.fps,
        )

    def blocks(self, length: int, first: Optional[int] = None) -> Iterator[Tuple[int, int]]:
        """(start, stop) of successive blocks of `length` frames, the first of `first`; both multiples of BLOCK."""
        start, size = 0, first or length
        while start < self.num_frames:
            stop = min(start + size, self.num_frames)
            yield start, stop
            start, size = stop, length

    def _tracks(self, begin: int, end: int) -> Float32[np.ndarray, "P num_samples"]:
        first, last = (round(frame / self.fps * SAMPLE_RATE) for frame in (begin, end))
        if self.own is not None:
            return np.stack([track.read(first, last) for track in self.own])
        mix = self.mix.read(first, last)
        return split_by_role(mix, SAMPLE_RATE, self.speaking[begin:end], self.fps).tracks
