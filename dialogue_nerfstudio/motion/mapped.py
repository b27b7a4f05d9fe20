"""The arrays of one conversation, simulated or recorded, mapped from disk: [P, T, …], gaze flat.

P participants, T frames at 25 fps. A recorded conversation's sound is analysed once, into `motion_tracks.safetensors`
in its folder, which is made again when motion, roles or sound have changed.
"""

import hashlib
import warnings
from pathlib import Path
from typing import Dict, List

import numpy as np
from jaxtyping import Float32

from dialogue_nerfstudio.conversation.acoustics import SAMPLE_RATE, at_16k, exactly, mel_spectrogram, prosody_features
from dialogue_nerfstudio.conversation.conversation import Conversation, load_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.motion_shards import open_shard, shard_fingerprint, write_shard
from dialogue_nerfstudio.motion.signals import MEL_RATE
from dialogue_nerfstudio.process.participant_audio import split_by_role

Arrays = Dict[str, np.ndarray]

TRACKS_NAME = "motion_tracks.safetensors"
"""A recorded conversation's arrays, in its folder."""
_VERSION = 1


def map_shard(path: Path) -> Arrays:
    """A shard's arrays. They are views of the file: read them, do not write into them.

    Raises:
        DialogueError: the shard is missing, cut off, or not a motion shard.
    """
    shard = open_shard(path, framework="pt")
    arrays = {name: shard.get_tensor(name).numpy() for name in shard.keys()}  # noqa: SIM118
    return _flat_gaze(arrays)


def recorded_arrays(root: Path) -> Arrays:
    """A recorded conversation's arrays; `motion_tracks.safetensors` is written where it is not there yet. Where the
    folder may not be written to, there is a warning and they are in memory.

    Raises:
        DialogueError: the conversation is damaged, or its sound is missing.
    """
    path, fingerprint = Path(root) / TRACKS_NAME, _fingerprint(Path(root))
    if shard_fingerprint(path) == fingerprint:
        return map_shard(path)
    arrays = _analyse(load_conversation(root))
    try:
        write_shard(path, arrays, fingerprint)
    except DialogueError as error:
        warnings.warn(f"{error} Until then the arrays of {root} are kept in memory.", stacklevel=2)
        return _flat_gaze(arrays)
    return map_shard(path)


def participant_tracks(conversation: Conversation) -> List[Float32[np.ndarray, " num_samples"]]:
    """Everybody's own sound at 16 kHz, as long as the pictures: audio/<id>.wav where there is one for everybody, else
    the mix cut by who speaks (`process.participant_audio`).

    Raises:
        DialogueError: the sound is missing or not a sound file.
    """
    import soundfile

    needed = round(conversation.num_frames / conversation.fps * SAMPLE_RATE)
    paths = [conversation.path("audio", f"{name}.wav") for name in conversation.participant_ids]
    if not all(path.is_file() for path in paths):
        mix, rate = conversation.audio()
        parts = split_by_role(at_16k(mix, rate), SAMPLE_RATE, conversation.speaking, conversation.fps)
        return [exactly(track, needed) for track in parts.tracks]
    tracks = []
    for path in paths:
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (OSError, soundfile.SoundFileError) as error:
            raise DialogueError(f"{path} is not a sound file; process the video again.") from error
        tracks.append(exactly(at_16k(samples.mean(axis=1), rate), needed))
    return tracks


def _analyse(conversation: Conversation) -> Arrays:
    motions = [participant.motion for participant in conversation.participants]
    arrays = {
        name: np.stack([getattr(motion, name) for motion in motions]).astype(np.float32)
        for name in ("head_pose", "expression", "blink", "gaze")
    }
    tracks = participant_tracks(conversation)
    steps = round(conversation.num_frames / conversation.fps * MEL_RATE)
    arrays["speaking"] = np.ascontiguousarray(conversation.speaking.T)
    arrays["prosody"] = np.stack(
        [prosody_features(track, SAMPLE_RATE, conversation.num_frames, conversation.fps) for track in tracks]
    )
    arrays["mel"] = np.stack([mel_spectrogram(track)[:steps].astype(np.float16) for track in tracks])
    return arrays


def _flat_gaze(arrays: Arrays) -> Arrays:
    return {**arrays, "gaze": arrays["gaze"].reshape(*arrays["gaze"].shape[:2], 4)}


def _fingerprint(root: Path) -> str:
    """Changes with every file that the arrays are made from."""
    files = [root / "conversation.json", root / "roles.rttm", root / "audio.wav"]
    files += [*sorted((root / "audio").glob("*.wav")), *sorted((root / "participants").glob("*/motion.npz"))]
    stamps = [
        (str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()
    ]
    return hashlib.sha256(repr((_VERSION, stamps)).encode()).hexdigest()[:16]
