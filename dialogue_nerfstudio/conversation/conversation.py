"""The conversation: participants × frames, their media and features, as dataclasses and as a folder on disk.

A folder is complete when conversation.json is there: it is written last. Media are read lazily, so an open conversation
is small however long it is.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import read_json, read_npz, write_json
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, segments_to_frames, write_rttm
from dialogue_nerfstudio.conversation.video import FrameReader, LabelReader

SCHEMA_VERSION = 2
"""Version of the folder's format; a newer one than the program knows is refused. 2: participants without pictures."""

SAMPLE_RATE = 16000
"""Hertz of every audio file in a conversation."""


PLATE_NAME, HOLES_NAME = "background.png", "background_holes.png"
"""A participant's static plate, and where it was made up (white)."""


@dataclass
class Camera:
    """The fixed pinhole camera that recorded one person; nerfstudio's axes: looks along −z, y up."""

    width: int
    height: int
    focal: float
    """Focal length, pixels."""
    cx: float
    cy: float
    """Principal point, pixels from the left and top edge of the crop."""
    camera_to_person: Float[np.ndarray, "3 4"]
    """Rigid transform from camera to person space, metres."""


@dataclass
class Participant:
    """One person of a conversation: how they were recorded, where their body is, and how it moves.

    A *voice* was recorded without pictures: camera, boxes and motion are None, all of them, and there is no folder
    under participants/.
    """

    id: str
    name: str
    camera: Optional[Camera] = None
    head_box: Optional[Float[np.ndarray, "2 3"]] = None
    """Minimum and maximum corner of the head's box, metres in head space."""
    torso_box: Optional[Float[np.ndarray, "2 3"]] = None
    """Minimum and maximum corner of the box of neck and torso, metres in person space."""
    motion: Optional[Motion] = None
    source: Dict[str, Any] = field(default_factory=dict)
    """Where the pictures came from: file, crop in pixels of that file, …"""

    @property
    def is_voice(self) -> bool:
        """Whether only the sound of this person was recorded."""
        return self.camera is None and self.head_box is None and self.torso_box is None and self.motion is None


@dataclass
class Conversation:
    """Everything known about a recorded conversation; see design.md for the folder it lives in."""

    num_frames: int
    participants: List[Participant]
    segments: List[SpeechSegment]
    """Who speaks when; the speakers are participant ids."""
    train_frames: Int[np.ndarray, " num_train"]
    eval_frames: Int[np.ndarray, " num_eval"]
    fps: float = 25.0
    provenance: Dict[str, Any] = field(default_factory=dict)
    """What made the folder: program, version, options, source."""
    root: Optional[Path] = None
    """The folder on disk."""

    @property
    def has_pictures(self) -> bool:
        """Whether everybody was seen, and not only heard."""
        return not any(participant.is_voice for participant in self.participants)

    @property
    def participant_ids(self) -> List[str]:
        return [participant.id for participant in self.participants]

    def participant(self, participant_id: str) -> Participant:
        """The participant of that id.

        Raises:
            DialogueError: there is none.
        """
        for participant in self.participants:
            if participant.id == participant_id:
                return participant
        raise DialogueError(
            f"there is no participant '{participant_id}' in {self.root}; it has {', '.join(self.participant_ids)}."
        )

    @property
    def speaking(self) -> Bool[np.ndarray, "num_frames num_participants"]:
        """Whether each participant speaks at each frame."""
        return segments_to_frames(self.segments, self.participant_ids, self.num_frames, self.fps)

    def path(self, *parts: str) -> Path:
        """A path inside the folder.

        Raises:
            DialogueError: the conversation was never saved.
        """
        if self.root is None:
            raise DialogueError("this conversation has no folder yet; save it first.")
        return self.root.joinpath(*parts)

    def participant_path(self, participant_id: str, name: str) -> Path:
        return self.path("participants", participant_id, name)

    def frames(self, participant_id: str) -> FrameReader:
        """The person's crop, uint8 [height, width, 3] a frame, decoded when asked for."""
        return self._checked_length(FrameReader(self.participant_path(participant_id, "video.mp4")))

    def labels(self, participant_id: str) -> LabelReader:
        """The person's label maps, uint8 [height, width] a frame, decoded when asked for."""
        return self._checked_length(LabelReader(self.participant_path(participant_id, "labels.mkv")))

    def _checked_length(self, reader: FrameReader) -> FrameReader:
        if len(reader) != self.num_frames:
            raise DialogueError(
                f"{reader.path} has {len(reader)} frames, the conversation {self.num_frames}; process the video again."
            )
        return reader

    def background(self, participant_id: str) -> UInt8[np.ndarray, "height width 3"]:
        """The static plate behind the person, RGB."""
        path = self.participant_path(participant_id, PLATE_NAME)
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                return np.asarray(image.convert("RGB"))
        except (FileNotFoundError, UnidentifiedImageError) as error:
            raise DialogueError(f"{path} is missing or is not a picture; process the video again.") from error

    def background_holes(self, participant_id: str) -> Optional[Bool[np.ndarray, "height width"]]:
        """Where the plate was made up because the person was never out of the way; None for a plate that was given
        whole, such as a simulation's.

        Raises:
            DialogueError: the file is damaged, or of another size than the plate.
        """
        path = self.participant_path(participant_id, HOLES_NAME)
        if not path.is_file():
            return None
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(path) as image:
                holes = np.asarray(image.convert("L")) > 127
        except (OSError, UnidentifiedImageError) as error:
            raise DialogueError(f"{path} is not a picture; process the video again.") from error
        plate = self.background(participant_id)
        if holes.shape != plate.shape[:2]:
            raise DialogueError(f"{path} has another size than {PLATE_NAME}; process the video again.")
        return holes

    def tracking(self, participant_id: str) -> Dict[str, np.ndarray]:
        """landmarks [T, 478, 2] px, reprojection_error [T] px, confidence [T], visible [T]."""
        return read_npz(self.participant_path(participant_id, "tracking.npz"))

    @property
    def feature_names(self) -> List[str]:
        return sorted(path.stem for path in self.path("features").glob("*.npz"))

    def feature(self, name: str) -> Float32[np.ndarray, "num_frames ..."]:
        """An audio feature, one row a frame.

        Raises:
            DialogueError: it was not computed, or has another number of frames.
        """
        path = self.path("features", f"{name}.npz")
        if not path.is_file():
            raise DialogueError(
                f"{self.root} has no audio feature '{name}' (it has {', '.join(self.feature_names) or 'none'}): "
                f"`ns-dialogue features {self.root} --kind {name}` makes it, or choose one that is there."
            )
        feature = read_npz(path).get("features")
        if feature is None or len(feature) != self.num_frames:
            raise DialogueError(f"{path} does not hold one row for each of the {self.num_frames} frames.")
        return feature.astype(np.float32)

    def silent_feature(self, name: str) -> Float32[np.ndarray, "..."]:
        """The row of an audio feature where nothing sounds.

        Raises:
            DialogueError: the feature is not there.
        """
        feature = self.feature(name)
        silence = read_npz(self.path("features", f"{name}.npz")).get("silence")
        if silence is None:
            # Written before silence was kept, or by somebody else's program.
            return np.full(feature.shape[1:], -1.0 if name == "mel" else 0.0, np.float32)
        if silence.shape != feature.shape[1:]:
            raise DialogueError(
                f"{self.path('features', f'{name}.npz')} holds rows of shape {feature.shape[1:]} but a silence of "
                f"shape {silence.shape}; make it again with `ns-dialogue features`."
            )
        return silence.astype(np.float32)

    def audio(self) -> Tuple[Float32[np.ndarray, " num_samples"], int]:
        """The mix, −1 … 1, and its sample rate."""
        import soundfile

        path = self.path("audio.wav")
        try:
            samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        except (OSError, soundfile.SoundFileError) as error:
            raise DialogueError(f"{path} is missing or is not a sound file; process the video again.") from error
        return samples.mean(axis=1), rate

    def validate(self) -> None:
        """Checks that the parts agree with each other.

        Raises:
            DialogueError: naming the participant, the field and the frame.
        """
        where = str(self.root or "the conversation")
        if not self.participants:
            raise DialogueError(f"{where} has no participants.")
        if len(set(self.participant_ids)) != len(self.participants):
            raise DialogueError(f"{where}: two participants share an id ({', '.join(self.participant_ids)}).")
        for participant in self.participants:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", participant.id):
                raise DialogueError(f"{where}: the id '{participant.id}' holds more than letters, digits, _ and -.")
            if participant.is_voice:
                continue
            if participant.camera is None or participant.motion is None:
                raise DialogueError(f"{where}: participant {participant.id} has a camera or a motion, but not both.")
            motion = participant.motion
            motion.validate(f"{where}: motion of participant {participant.id}")
            if motion.num_frames != self.num_frames:
                raise DialogueError(
                    f"{where}: the motion of participant {participant.id} has {motion.num_frames} frames, "
                    f"the conversation {self.num_frames}; process the video again."
                )
            seen = next(other for other in self.participants if not other.is_voice)
            seen.motion.check_same_basis(motion, f"{where}, participant {participant.id}")
            for name, box in (("head_box", participant.head_box), ("torso_box", participant.torso_box)):
                if np.shape(box) != (2, 3) or not np.isfinite(box).all() or not (box[1] > box[0]).all():
                    raise DialogueError(f"{where}: {name} of participant {participant.id} is not a box.")
        for name, frames in (("train", self.train_frames), ("eval", self.eval_frames)):
            if len(frames) == 0 or np.min(frames) < 0 or np.max(frames) >= self.num_frames:
                raise DialogueError(f"{where}: the {name} split is empty or names frames that do not exist.")
        segments_to_frames(self.segments, self.participant_ids, 0, self.fps)


def save_conversation(conversation: Conversation, root: Path) -> None:
    """Writes roles, motions and, last, conversation.json; the media are already there.

    Raises:
        DialogueError: the parts do not agree, or the disk is full.
    """
    root = Path(root)
    conversation.root = root
    conversation.validate()
    write_rttm(root / "roles.rttm", conversation.segments)
    for participant in conversation.participants:
        if participant.motion is not None:
            participant.motion.save(conversation.participant_path(participant.id, "motion.npz"))
    write_json(
        root / "conversation.json",
        {
            "schema_version": SCHEMA_VERSION,
            "fps": conversation.fps,
            "num_frames": conversation.num_frames,
            "participants": [_participant_to_json(participant) for participant in conversation.participants],
            "split": {
                "train": _frames_to_ranges(conversation.train_frames),
                "eval": _frames_to_ranges(conversation.eval_frames),
            },
            "provenance": conversation.provenance,
        },
    )


def load_conversation(root: Path, needs_pictures: bool = True) -> Conversation:
    """Opens a conversation folder.

    Args:
        root: the folder.
        needs_pictures: whether a conversation with participants of whom there is only the voice is refused.

    Raises:
        DialogueError: it is missing, half-written, of a newer schema, damaged, or of voices only; the message names
            the file, participant and frame.
    """
    root = Path(root)
    manifest_path = root / "conversation.json"
    if not root.is_dir():
        raise DialogueError(f"{root} is not a folder; give the folder that `ns-dialogue process` wrote.")
    if not manifest_path.is_file():
        raise DialogueError(
            f"{root} has no conversation.json, so its processing never finished (or it is another kind of folder); "
            "run the same `ns-dialogue process` command again, it goes on where it stopped."
        )
    manifest = read_json(manifest_path)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if not isinstance(version, int):
        raise DialogueError(f"{manifest_path} is not a conversation: it has no schema_version.")
    if version > SCHEMA_VERSION:
        raise DialogueError(
            f"{manifest_path} has schema version {version}, this program knows up to {SCHEMA_VERSION}; "
            "upgrade dialogue-nerfstudio."
        )
    try:
        participants = [
            _voice_from_json(entry)
            if entry["camera"] is None
            else _participant_from_json(entry, Motion.load(root / "participants" / entry["id"] / "motion.npz"))
            for entry in manifest["participants"]
        ]
        conversation = Conversation(
            num_frames=int(manifest["num_frames"]),
            participants=participants,
            segments=read_rttm(root / "roles.rttm"),
            train_frames=_ranges_to_frames(manifest["split"]["train"]),
            eval_frames=_ranges_to_frames(manifest["split"]["eval"]),
            fps=float(manifest["fps"]),
            provenance=manifest["provenance"],
            root=root,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DialogueError(f"{manifest_path} is damaged ({type(error).__name__}: {error}).") from error
    conversation.validate()
    if needs_pictures and not conversation.has_pictures:
        voices = ", ".join(participant.id for participant in conversation.participants if participant.is_voice)
        raise DialogueError(
            f"{root} was made from sound alone: of {voices} there is a voice, but no picture and no motion. Avatars of "
            f"other people can speak it: ns-dialogue render --audio {root / 'audio.wav'} --rttm {root / 'roles.rttm'}."
        )
    return conversation


def _participant_to_json(participant: Participant) -> Dict[str, Any]:
    if participant.is_voice:
        return {"id": participant.id, "name": participant.name, "camera": None, "source": participant.source}
    camera = participant.camera
    return {
        "id": participant.id,
        "name": participant.name,
        "camera": {
            "width": camera.width,
            "height": camera.height,
            "focal": float(camera.focal),
            "cx": float(camera.cx),
            "cy": float(camera.cy),
            "camera_to_person": np.asarray(camera.camera_to_person, dtype=float).tolist(),
        },
        "head_box": np.asarray(participant.head_box, dtype=float).tolist(),
        "torso_box": np.asarray(participant.torso_box, dtype=float).tolist(),
        "source": participant.source,
    }


def _voice_from_json(entry: Dict[str, Any]) -> Participant:
    return Participant(id=entry["id"], name=entry["name"], source=entry["source"])


def _participant_from_json(entry: Dict[str, Any], motion: Motion) -> Participant:
    camera = dict(entry["camera"])
    camera["camera_to_person"] = np.array(camera["camera_to_person"], dtype=float).reshape(3, 4)
    return Participant(
        id=entry["id"],
        name=entry["name"],
        camera=Camera(**camera),
        head_box=np.array(entry["head_box"], dtype=float),
        torso_box=np.array(entry["torso_box"], dtype=float),
        motion=motion,
        source=entry["source"],
    )


def _frames_to_ranges(frames: Int[np.ndarray, " n"]) -> List[List[int]]:
    """Sorted frame numbers as [start, stop) pairs, so that a long split stays a short line."""
    frames = np.unique(frames)
    breaks = np.flatnonzero(np.diff(frames) > 1) + 1
    return [[int(run[0]), int(run[-1]) + 1] for run in np.split(frames, breaks) if len(run)]


def _ranges_to_frames(ranges: List[List[int]]) -> Int[np.ndarray, " n"]:
    return np.concatenate([np.arange(start, stop) for start, stop in ranges] or [np.zeros(0, dtype=int)])
