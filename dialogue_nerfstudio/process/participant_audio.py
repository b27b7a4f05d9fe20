"""Each participant's own sound, cut out of the mix by who speaks when.

Conventions. A participant's *gate* is 1 while they speak and 0 else, with ramps of `fade` seconds whose squares add up
to one where one participant's turn follows another's at once (equal power). Pauses are silent in every track. This
separates turns, not voices: where two speak at once both tracks hold both, and `overlap_seconds` says how much that is.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float32
from scipy.ndimage import uniform_filter1d


@dataclass
class ParticipantAudioConfig:
    """How turns are cut."""

    fade: float = 0.04
    """Length of a ramp (s), about a video frame."""
    margin: float = 0.06
    """A turn is kept from this long before to this long after its frames (s): roles are a frame or two off."""


@dataclass
class ParticipantAudio:
    """The tracks, and how pure they are."""

    tracks: Float32[np.ndarray, "num_participants num_samples"]
    overlap_seconds: float
    """Time in which two or more speak, whose tracks therefore hold each other."""


def split_by_role(
    mix: Float[np.ndarray, " num_samples"],
    sample_rate: int,
    speaking: Bool[np.ndarray, "num_frames num_participants"],
    fps: float,
    config: ParticipantAudioConfig | None = None,
) -> ParticipantAudio:
    """One track a participant from the mix and the roles."""
    config = config or ParticipantAudioConfig()
    num_frames, num_participants = speaking.shape
    if num_frames == 0:
        return ParticipantAudio(np.zeros((num_participants, len(mix)), np.float32), 0.0)
    # Multiplied first: the quotient is then exact where a frame begins.
    frame = np.minimum((np.arange(len(mix)) * fps // sample_rate).astype(int), num_frames - 1)
    tracks = np.zeros((num_participants, len(mix)), np.float32)
    reach = max(1, round(2 * config.margin * sample_rate)) | 1
    ramp = max(1, round(config.fade * sample_rate)) | 1
    alone = speaking.sum(1) == 1
    for participant in range(num_participants):
        mine = speaking[:, participant]
        others = alone & ~mine
        # Open around own turns, but never into the middle of another's.
        wide = uniform_filter1d(mine[frame].astype(np.float32), reach, mode="nearest") > 1e-6
        gate = np.where(wide & ~others[frame], 1.0, 0.0)
        smooth = np.clip(uniform_filter1d(gate, ramp, mode="nearest"), 0.0, 1.0)
        tracks[participant] = mix * np.sin(0.5 * np.pi * smooth)
    return ParticipantAudio(tracks, float((speaking.sum(1) > 1).sum() / fps))
