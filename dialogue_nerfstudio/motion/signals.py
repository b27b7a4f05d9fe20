"""What a motion generator hears: every participant's own sound per frame, and who speaks.

Conventions. P participants, T frames at 25 fps; frame t shows the time (t + 0.5) / fps. A *track* is one participant's
sound alone: recorded apart, a channel of a stereo file, or the mix where that participant speaks and silence elsewhere
(`process.participant_audio`). Mel steps are 12.5 ms apart (`conversation.acoustics.mel_spectrogram`), so a frame has
3.2 of them: `mel_windows` cuts the 200 ms around a frame exactly as the feature `mel` of a conversation does.
"""

from dataclasses import dataclass, replace
from typing import Sequence, Tuple

import numpy as np
from jaxtyping import Bool, Float32, Int

MEL_RATE = 80.0
"""Mel steps a second."""
MEL_STEPS = 16
"""Mel steps in a frame's window."""
BLOCK = 5
"""Frames after which a frame begins with a mel step again (at 25 fps)."""


@dataclass
class MotionSignals:
    """What is heard over a stretch of a conversation."""

    participant_ids: Tuple[str, ...]
    prosody: Float32[np.ndarray, "P T 2"]
    """Zero-crossing rate (crossings a sample) and root mean square of each track during each frame (DialogueNeRF
    4.1)."""
    mel: Float32[np.ndarray, "P S 80"]
    """Log-mel spectrogram of each track, −1 silence to 1: S = round(T / fps · 80) steps from the stretch's start."""
    speaking: Bool[np.ndarray, "P T"]
    """Who speaks."""
    fps: float = 25.0

    @property
    def num_frames(self) -> int:
        return self.speaking.shape[1]

    def frames(self, start: int, stop: int) -> "MotionSignals":
        """The frames start … stop − 1.

        Cut at multiples of `BLOCK`, stretches put one after the other are the whole again, mel steps included.
        """
        first = round(start / self.fps * MEL_RATE)
        last = round(stop / self.fps * MEL_RATE)
        return replace(
            self,
            prosody=self.prosody[:, start:stop],
            mel=self.mel[:, first:last],
            speaking=self.speaking[:, start:stop],
        )


def window_steps(frames: Sequence[int], fps: float = 25.0) -> Int[np.ndarray, "n 16"]:
    """The mel steps of the 200 ms around the centres of the named frames, counted from frame 0's beginning.

    A window's middle, between its steps 7 and 8, is the step boundary nearest to (t + 0.5) / fps (DialogueNeRF 4.1).
    """
    centre = (np.asarray(frames) + 0.5) / fps * MEL_RATE
    return np.round(centre - (MEL_STEPS - 1) / 2).astype(int)[:, None] + np.arange(MEL_STEPS)


def mel_windows(
    mel: Float32[np.ndarray, "... S 80"], frames: Sequence[int], fps: float = 25.0
) -> Float32[np.ndarray, "... n 16 80"]:
    """The spectrogram in `window_steps` of the named frames; outside of what is there it is silent (−1)."""
    steps = window_steps(frames, fps)
    inside = (steps >= 0) & (steps < mel.shape[-2])
    windows = mel[..., np.clip(steps, 0, mel.shape[-2] - 1), :]
    return np.where(inside[..., None], windows, np.float32(-1.0))
