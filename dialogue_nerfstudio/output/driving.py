"""Decide, frame by frame, what moves and sounds in a rendered conversation: the recording, other motion, new audio.

Convention: T frames at `fps`; every participant has a Motion of T frames, the audio feature [T, ...], roles bool
[T, P] in the order of the avatars' participants, sound float32 [S] mono at `sample_rate` Hz, S = T / fps · sample_rate.
Everything is pure: the conversations read here are not changed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Optional

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.interpolate import interp1d
from scipy.spatial.transform import Rotation, Slerp

from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE, Conversation, load_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_npz
from dialogue_nerfstudio.conversation.motion import MOUTH_NAMES, Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, segments_to_frames

ANIMATION_FILE, ANIMATION_WORK = "animation.json", ".animate"
"""What `animate` writes into its folder last, and the folder of its stamps there."""


@dataclass
class Driving:
    """What drives one render."""

    motions: dict[str, Motion]
    """participant id → motion, all of T frames"""
    features: Float[np.ndarray, "T ..."]
    """the audio feature of the mix that the avatars hear"""
    speaking: Bool[np.ndarray, "T P"]
    """who speaks at which frame, columns in the order of `motions`"""
    audio: Float[np.ndarray, " S"]
    """the sound to mux"""
    sample_rate: int
    """Hz"""
    fps: float
    """frames per second"""
    sources: list[str] = field(default_factory=list)
    """files this came from, for the provenance"""

    @property
    def num_frames(self) -> int:
        return len(self.speaking)

    def take(self, frames: Int[np.ndarray, " n"]) -> "Driving":
        """The named frames in their order, with the sound of each."""
        bounds = np.round(np.stack([frames, frames + 1]) / self.fps * self.sample_rate).astype(int)
        audio = np.concatenate([self.audio[start:stop] for start, stop in bounds.T] or [self.audio[:0]])
        motions = {participant_id: motion.take(frames) for participant_id, motion in self.motions.items()}
        return replace(
            self, motions=motions, features=self.features[frames], speaking=self.speaking[frames], audio=audio
        )


def ping_pong(num_frames: int, length: int) -> Int[np.ndarray, " length"]:
    """Frame numbers 0 … num_frames−1, back to 0 and so on, `length` of them: a loop without a jump."""
    if num_frames == 1:
        return np.zeros(length, dtype=int)
    period = 2 * (num_frames - 1)
    position = np.arange(length) % period
    return np.minimum(position, period - position)


def resample_motion(motion: Motion, fps: float) -> Motion:
    """The motion at another frame rate: rotations on the great arc, everything else linear in time."""
    if motion.fps == fps or motion.num_frames == 1:
        return replace(motion, fps=fps)
    old = (np.arange(motion.num_frames) + 0.5) / motion.fps
    count = max(1, round(motion.num_frames * fps / motion.fps))
    new = np.clip((np.arange(count) + 0.5) / fps, old[0], old[-1])

    def linear(values: np.ndarray) -> np.ndarray:
        return interp1d(old, values, axis=0)(new).astype(np.float32)

    rotation = Slerp(old, Rotation.from_rotvec(motion.head_pose[:, :3]))(new).as_rotvec()
    return replace(
        motion,
        head_pose=np.concatenate([rotation, linear(motion.head_pose[:, 3:])], axis=1).astype(np.float32),
        expression=linear(motion.expression),
        blink=linear(motion.blink),
        gaze=linear(motion.gaze),
        expression_residual=linear(motion.expression_residual),
        sway=None if motion.sway is None else linear(motion.sway),
        fps=fps,
    )


def imitate(avatar: Motion, other: Motion, where: str) -> Motion:
    """Another person's motion made fit to drive an avatar: the same basis, the avatar's frame rate, no residual.

    The residual is in the other person's own PCA, so it means nothing here and becomes zero.

    Raises:
        DialogueError: if the bases differ or the motion holds NaN; `where` names it.
    """
    other.validate(where)
    avatar.check_same_basis(other, where)
    resampled = resample_motion(other, avatar.fps)
    residual = np.zeros((resampled.num_frames, avatar.expression_residual.shape[1]), dtype=np.float32)
    return replace(resampled, expression_residual=residual)


def quiet_mouth(motion: Motion, was_speaking: Bool[np.ndarray, " T"], is_speaking: Bool[np.ndarray, " T"]) -> Motion:
    """Close the mouth where somebody listens now but was speaking when recorded, or it would babble without a sound.

    Jaw and lip coefficients of those frames become their median while listening (0, the neutral face, if the person
    never listened). Basis coefficients only: a basis given by path has other names and is left alone.
    """
    babbling = was_speaking & ~is_speaking
    columns = [motion.expression_names.index(name) for name in MOUTH_NAMES if name in motion.expression_names]
    if not babbling.any() or not columns:
        return motion
    listening = motion.expression[~was_speaking]
    rest = np.median(listening[:, columns], axis=0) if len(listening) else np.zeros(len(columns))
    expression = motion.expression.copy()
    expression[np.ix_(babbling, columns)] = rest
    residual = np.where(babbling[:, None], 0, motion.expression_residual).astype(np.float32)
    return replace(motion, expression=expression, expression_residual=residual)


@dataclass(frozen=True)
class Hearing:
    """What the avatars hear."""

    feature: str = "mel"
    """name of the audio feature they were trained with"""
    weights: Optional[str] = None
    """where the network that makes it is now; None for where it was"""

    def rows(
        self, conversation: Conversation, audio: Float[np.ndarray, " S"], sample_rate: int, num_frames: int
    ) -> Float[np.ndarray, "T ..."]:
        """That feature of new sound, made as the conversation's was."""
        from dialogue_nerfstudio.process.features import features_of_new_sound

        return features_of_new_sound(conversation, self.feature, audio, sample_rate, num_frames, self.weights)


def drive_by_recording(conversation: Conversation, hearing: Hearing = Hearing()) -> Driving:
    """The recording itself: its motions, roles and sound."""
    audio, sample_rate = conversation.audio()
    return Driving(
        motions={participant.id: participant.motion for participant in conversation.participants},
        features=conversation.feature(hearing.feature),
        speaking=conversation.speaking,
        audio=fit_audio(audio, sample_rate, conversation.num_frames, conversation.fps),
        sample_rate=sample_rate,
        fps=conversation.fps,
        sources=[str(conversation.root)],
    )


def fit_audio(
    audio: Float[np.ndarray, " S"], sample_rate: int, num_frames: int, fps: float
) -> Float[np.ndarray, " S2"]:
    """The sound cut, or padded with silence, to the length of `num_frames`."""
    count = round(num_frames / fps * sample_rate)
    return np.pad(audio[:count], (0, max(0, count - len(audio)))).astype(np.float32)


@dataclass
class OtherSound:
    """What was heard while somebody else moved."""

    path: Path
    """the mix"""
    participant_ids: list[str]
    speaking: Bool[np.ndarray, "T P"]
    """who spoke, columns in the order of `participant_ids`"""
    fps: float
    """rows a second"""


@dataclass
class OtherMotion:
    """Motions from elsewhere, with their sound and roles where there are any."""

    motions: dict[str, Motion]
    """that source's ids → motions"""
    sound: Optional[OtherSound]
    """None for motions alone"""
    path: Path
    """where it came from"""


def load_other_motion(path: Path) -> OtherMotion:
    """Read what may drive an avatar: a conversation, what `animate` wrote, a folder of motions, or one motion file.

    Args:
        path: a conversation folder, a folder with ID.npz or participants/ID/motion.npz files (with the sound and roles
            of audio.wav and roles.rttm, where both are there), or one .npz.

    Raises:
        DialogueError: if there is no motion there, a file is damaged, or holds NaN.
    """
    if path.is_file():
        return OtherMotion({path.stem: Motion.load(path)}, None, path)
    if not path.exists():
        raise DialogueError(f"{path} does not exist; give a conversation folder or a motion file to --motion.")
    if (path / "conversation.json").is_file():
        conversation = load_conversation(path)
        ids = conversation.participant_ids
        sound = OtherSound(conversation.path("audio.wav"), ids, conversation.speaking, conversation.fps)
        return OtherMotion({person.id: person.motion for person in conversation.participants}, sound, path)
    if (path / ANIMATION_WORK).is_dir() and not (path / ANIMATION_FILE).is_file():
        raise DialogueError(
            f"the animation in {path} never finished: run the same `ns-dialogue animate` command again, it goes on "
            "where it stopped."
        )
    files = {file.parent.name: file for file in sorted(path.glob("participants/*/motion.npz"))}
    files.update({file.stem: file for file in sorted(path.glob("*.npz")) if "head_pose" in read_npz(file)})
    if not files:
        raise DialogueError(
            f"{path} holds no conversation and no motion file; give a folder that `ns-dialogue process` finished, "
            "a folder of ID.npz motion files, or one motion file to --motion."
        )
    motions = {participant_id: Motion.load(file) for participant_id, file in files.items()}
    return OtherMotion(motions, _sound_beside(path, motions), path)


def _sound_beside(path: Path, motions: dict[str, Motion]) -> Optional[OtherSound]:
    """The sound and roles in a folder of motions, where both are there."""
    if not ((path / "audio.wav").is_file() and (path / "roles.rttm").is_file()):
        return None
    longest = max(motions.values(), key=lambda motion: motion.num_frames / motion.fps)
    try:
        segments = read_rttm(path / "roles.rttm")
        speaking = segments_to_frames(segments, list(motions), longest.num_frames, longest.fps)
    except DialogueError as error:
        raise DialogueError(f"{path / 'roles.rttm'}: {error}") from error
    return OtherSound(path / "audio.wav", list(motions), speaking, longest.fps)


def map_motions(avatar_ids: Sequence[str], other_ids: Sequence[str], pairs: Sequence[str]) -> dict[str, str]:
    """Which avatar takes whose motion.

    Without `pairs`, equal ids belong together if every avatar's id is there; else they pair in their order. An avatar
    without a partner keeps its own recorded motion.

    Args:
        avatar_ids: participants of the checkpoint.
        other_ids: ids of the motions.
        pairs: "avatar=other" each.

    Raises:
        DialogueError: if a pair is malformed or names somebody who is not there.
    """
    if not pairs:
        if set(avatar_ids) <= set(other_ids):
            return {avatar_id: avatar_id for avatar_id in avatar_ids}
        return dict(zip(avatar_ids, other_ids, strict=False))
    mapping = {}
    for pair in pairs:
        avatar_id, equals, other_id = pair.partition("=")
        if not equals:
            raise DialogueError(f"--motion-map takes AVATAR=OTHER, but '{pair}' has no '='.")
        if avatar_id not in avatar_ids:
            raise DialogueError(
                f"--motion-map {pair}: there is no avatar '{avatar_id}'; this checkpoint has {', '.join(avatar_ids)}."
            )
        if other_id not in other_ids:
            raise DialogueError(
                f"--motion-map {pair}: there is no motion of '{other_id}'; there is {', '.join(other_ids)}."
            )
        mapping[avatar_id] = other_id
    return mapping


def drive_by_motion(
    conversation: Conversation, other: OtherMotion, pairs: Sequence[str] = (), hearing: Hearing = Hearing()
) -> Driving:
    """The avatars move as somebody else did (pose imitation), with that conversation's sound and roles if it has them.

    The length is that of the longest motion used; whoever has less goes back and forth. Avatars without a partner keep
    their own motion. Motions without sound and roles are silent and nobody speaks.

    Raises:
        DialogueError: if the bases differ, a motion holds NaN, or `pairs` names somebody who is not there.
    """
    from dialogue_nerfstudio.process.audio_features import load_audio

    mapping = map_motions(conversation.participant_ids, list(other.motions), pairs)
    taken = {
        avatar_id: imitate(
            conversation.participant(avatar_id).motion, other.motions[other_id], f"motion of {other_id} in {other.path}"
        )
        for avatar_id, other_id in mapping.items()
    }
    num_frames = max(motion.num_frames for motion in taken.values())
    speaking = np.zeros((num_frames, len(conversation.participants)), dtype=bool)
    audio, sample_rate = np.zeros(0, dtype=np.float32), SAMPLE_RATE
    if other.sound is not None:
        audio, sample_rate = load_audio(other.sound.path), SAMPLE_RATE
        rows = (np.arange(num_frames) + 0.5) / conversation.fps * other.sound.fps
        rows = np.minimum(rows, len(other.sound.speaking) - 1).astype(int)
        for column, avatar_id in enumerate(conversation.participant_ids):
            if avatar_id in mapping:
                other_column = other.sound.participant_ids.index(mapping[avatar_id])
                speaking[:, column] = other.sound.speaking[rows, other_column]
    motions = {}
    for column, participant in enumerate(conversation.participants):
        if participant.id in taken:
            motion = taken[participant.id]
            motions[participant.id] = motion.take(ping_pong(motion.num_frames, num_frames))
        else:
            motions[participant.id] = _looped_motion(conversation, column, speaking[:, column])
    audio = fit_audio(audio, sample_rate, num_frames, conversation.fps)
    return Driving(
        motions=motions,
        features=hearing.rows(conversation, audio, sample_rate, num_frames),
        speaking=speaking,
        audio=audio,
        sample_rate=sample_rate,
        fps=conversation.fps,
        sources=[str(conversation.root), str(other.path)],
    )


def drive_by_audio(
    conversation: Conversation,
    audio_path: Path,
    speaker: Optional[str] = None,
    rttm: Optional[Path] = None,
    base: Optional[Driving] = None,
    hearing: Hearing = Hearing(),
) -> Driving:
    """New sound for the avatars; their heads move as in `base` (the recording if None), going back and forth as needed.

    Args:
        conversation: what the avatars were trained on.
        audio_path: any file with sound.
        speaker: who speaks, throughout; not needed if there is one avatar or an `rttm`.
        rttm: who speaks when, participant ids as speakers.
        base: other motions to use, from `drive_by_motion`.
        hearing: the audio feature that the avatars were trained with.

    Raises:
        DialogueError: if nobody is said to speak, a name is unknown, or the file has no sound.
    """
    from dialogue_nerfstudio.process.audio_features import load_audio

    ids = conversation.participant_ids
    if speaker is not None and rttm is not None:
        raise DialogueError("Give --speaker or --rttm, not both: they both say who speaks.")
    if speaker is None and rttm is None:
        if len(ids) > 1:
            raise DialogueError(
                f"--audio needs to know who speaks: add --speaker with one of {', '.join(ids)}, or --rttm with a file."
            )
        speaker = ids[0]
    audio = load_audio(audio_path)
    num_frames = int(len(audio) / SAMPLE_RATE * conversation.fps)
    if num_frames == 0:
        shortest = 1 / conversation.fps
        raise DialogueError(f"{audio_path} is shorter than one frame ({shortest:g} s); give a longer sound.")
    if rttm is not None:
        segments = read_rttm(rttm)
    else:
        if speaker not in ids:
            raise DialogueError(f"--speaker {speaker}: there is no such avatar; this checkpoint has {', '.join(ids)}.")
        segments = [SpeechSegment(0.0, len(audio) / SAMPLE_RATE, speaker)]
    speaking = segments_to_frames(segments, ids, num_frames, conversation.fps)
    if base is None:
        motions = {
            participant.id: _looped_motion(conversation, column, speaking[:, column])
            for column, participant in enumerate(conversation.participants)
        }
    else:
        rows = ping_pong(base.num_frames, num_frames)
        motions = {
            participant_id: quiet_mouth(motion.take(rows), base.speaking[rows, column], speaking[:, column])
            for column, (participant_id, motion) in enumerate(base.motions.items())
        }
    audio = fit_audio(audio, SAMPLE_RATE, num_frames, conversation.fps)
    sources = base.sources if base is not None else [str(conversation.root)]
    return Driving(
        motions=motions,
        features=hearing.rows(conversation, audio, SAMPLE_RATE, num_frames),
        speaking=speaking,
        audio=audio,
        sample_rate=SAMPLE_RATE,
        fps=conversation.fps,
        sources=[*sources, str(audio_path), *([str(rttm)] if rttm is not None else [])],
    )


def _looped_motion(conversation: Conversation, column: int, is_speaking: Bool[np.ndarray, " T"]) -> Motion:
    rows = ping_pong(conversation.num_frames, len(is_speaking))
    motion = conversation.participants[column].motion.take(rows)
    return quiet_mouth(motion, conversation.speaking[rows, column], is_speaking)


def choose_frames(
    num_frames: int,
    frames: Optional[str] = None,
    split: str = "all",
    train_frames: Optional[Int[np.ndarray, " n"]] = None,
    eval_frames: Optional[Int[np.ndarray, " m"]] = None,
) -> Int[np.ndarray, " k"]:
    """Which frames of a timeline to render.

    Args:
        num_frames: length of the timeline.
        frames: "START:STOP" (either may be missing), or None.
        split: "all", or "train" / "eval" of the recording.
        train_frames, eval_frames: the recording's split.

    Raises:
        DialogueError: if the range is malformed, empty, or beyond the timeline, or given with a split.
    """
    if split != "all":
        if frames is not None:
            raise DialogueError("Give --frames or --split, not both: they both choose the frames.")
        return np.asarray(train_frames if split == "train" else eval_frames, dtype=int)
    if frames is None:
        return np.arange(num_frames)
    start, colon, stop = frames.partition(":")
    try:
        first, last = int(start or 0), int(stop or num_frames)
    except ValueError as error:
        raise DialogueError(f"--frames takes START:STOP in whole numbers, e.g. 0:100, not '{frames}'.") from error
    if not colon or not 0 <= first < last <= num_frames:
        raise DialogueError(f"--frames {frames}: there are frames 0:{num_frames}, so START:STOP must lie in there.")
    return np.arange(first, last)
