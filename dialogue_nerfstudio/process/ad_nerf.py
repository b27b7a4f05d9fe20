"""An AD-NeRF-family folder in, a Conversation of one out: what the folder measured is kept, what it lacks is measured.

    pictures     the video, its label maps, the background plate      (ad_nerf_folder)
    landmarks    478 points a frame                                   (landmarks)
    head         own shape, and the folder's poses in our head space  (given_poses)
    expression   shared basis, residual, blink, gaze, mouth           (expression)
    boxes        where head and torso can be                          (boxes)
    audio        the sound and its features                           (audio_features)
    roles        when the person speaks                               (diarization)

Poses, camera, label maps, background and split are the folder's own, so that figures can be compared with the peers'.
Expression, blink and gaze are measured on its pictures. Where the face tracker is not installed, the folder's own
face-model coefficients and AU45 take their place; `notes` in process.json says what came from where.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np
from scipy.spatial.transform import Rotation

import dialogue_nerfstudio
from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE, Conversation, Participant, save_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import mean_face
from dialogue_nerfstudio.conversation.files import read_json, read_npz, write_json, write_npz
from dialogue_nerfstudio.conversation.motion import EXPRESSION_NAMES, Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, write_rttm
from dialogue_nerfstudio.conversation.video import FrameReader, LabelReader, LabelWriter, VideoWriter
from dialogue_nerfstudio.metrics.tracking import blinks_per_second
from dialogue_nerfstudio.process.ad_nerf_folder import (
    AdNerfFolder,
    closure_from_action_units,
    face_model_coefficients,
    read_ad_nerf_folder,
)
from dialogue_nerfstudio.process.background import background_plate, write_plate
from dialogue_nerfstudio.process.boxes import body_boxes
from dialogue_nerfstudio.process.decode import FPS
from dialogue_nerfstudio.process.given_poses import head_from_given_poses
from dialogue_nerfstudio.process.head_pose import HeadTrack, rotation_jitter
from dialogue_nerfstudio.process.landmarks import LandmarkTrack, bridged, fill_gaps, require_face
from dialogue_nerfstudio.process.pipeline import (
    WORK_FOLDER,
    ProcessConfig,
    Processing,
    check_output,
    clipped,
    feature_files,
    feature_options,
    feature_stage_options,
)
from dialogue_nerfstudio.process.stages import Progress, StageRunner, source_fingerprint
from dialogue_nerfstudio.process.trackers import lacks_sentence, make_tracker

LARGEST_ERROR = 0.04
"""Median distance, in picture widths, between where the given poses put the face and where it is seen. Beyond, they are
not poses of these pictures, or follow another convention."""

LARGEST_OFFSET, LARGEST_TURN = 0.3, np.radians(60)
"""How far (metres, radians) another tracker's head space may be from ours: its origin is in or near the head, its
z axis where the face looks. An axis the other way round looks like an offset of twice the distance to the camera."""

UNKNOWN_ORIGIN_MARGIN = 0.06
"""Added to the head's box, metres, before and behind, where nothing tells where in the head the given poses turn."""

SLACK_SECONDS = 1.0
"""Sound and stored audio features may end this much before the pictures do."""

FACE_MODEL_BASIS = "face-model-{}"
"""Name of the expression basis of track_params.pt, by its number of coefficients."""


def process_ad_nerf(
    folder: Path, output: Path, config: Optional[ProcessConfig] = None, progress: Optional[Progress] = None
) -> Conversation:
    """Turns a folder that AD-NeRF's pipeline, or a successor's, prepared into a conversation folder; the former is only
    read.

    Args:
        folder: see `ad_nerf_folder`.
        output: the folder to make; where an earlier run was interrupted, it goes on.
        config: options; those about finding people, cropping and splitting do not apply.
        progress: called as progress(stage, done, total).

    Raises:
        DialogueError: naming what is missing or wrong in which file; finished stages stay.
    """
    config, output = config or ProcessConfig(), Path(output)
    _check_options(config, folder)
    check_output(output)
    if output.resolve() == Path(folder).resolve() or Path(folder).resolve() in output.resolve().parents:
        raise DialogueError(f"{output} is inside of {folder}, which is only read; give another folder to write.")
    return _Conversion(read_ad_nerf_folder(folder), output, config, progress).run()


def _check_options(config: ProcessConfig, folder: Path) -> None:
    defaults = ProcessConfig()
    for name, what in (
        ("num_people", "shows one person"),
        ("size", "has pictures of its own size; the training resolution is an option of ns-train"),
        ("focal", "has its own focal length"),
        ("masks", "has label maps of its own (parsing/)"),
        ("eval_fraction", "has its own split into transforms_train.json and transforms_val.json"),
    ):
        value = getattr(config, name)
        if value != getattr(defaults, name) and not (name == "num_people" and value == 1):
            raise DialogueError(
                f"--{name.replace('_', '-')} {value}: {folder} is an AD-NeRF-family folder, which {what}; leave it out."
            )
    if len(config.names) > 1:
        raise DialogueError(f"{folder} is an AD-NeRF-family folder and shows one person: give one name.")


class _Conversion(Processing):
    """One run. The stages that a video of one person shares with it are `Processing`'s."""

    def __init__(self, folder: AdNerfFolder, output: Path, config: ProcessConfig, progress: Optional[Progress]):
        self.folder, self.output, self.config = folder, output, config
        self.num_frames = folder.num_frames
        self.ids = [config.names[0] if config.names else "p0"]
        self.runner = StageRunner(output, output / WORK_FOLDER, _fingerprint(folder), progress)
        self.face = self.choose_face()
        if config.face_model_path is not None and self.face != "tracked":
            raise DialogueError(
                f"--face-model-path {config.face_model_path}: without mediapipe no expressions are measured in "
                f"{folder.path}; install it, or leave the face model out."
            )
        self.tracker = make_tracker(config.tracker)
        if self.face == "tracked":
            self.tracker.require()

    def choose_face(self) -> str:
        """Where expression and blink come from: `tracked`, `face-model` or `none`.

        Raises:
            DialogueError: nothing at all would move the face.
        """
        if importlib.util.find_spec("mediapipe") is not None and sys.version_info < (3, 12):
            return "tracked"
        if (self.folder.path / "track_params.pt").is_file():
            return "face-model"
        if self.folder.sound() is None:
            raise DialogueError(
                f"{self.folder.path} has neither aud.wav nor track_params.pt, and mediapipe is not installed to "
                "measure the face, so nothing would move it: add one of them."
            )
        return "none"

    @property
    def participant(self) -> str:
        return self.ids[0]

    def run(self) -> Conversation:
        runner, config, i = self.runner, self.config, self.participant
        files = ("video.mp4", "labels.mkv", "background.png")
        self.prepare_basis()
        runner.run("pictures", self.write_pictures, [self.person(i, name) for name in files], options={"id": i})
        if self.face == "tracked":
            runner.run(
                "landmarks",
                lambda progress: self.track_landmarks(i, progress),
                [self.work(f"{i}_landmarks.npz")],
                needs=["pictures"],
                options={"max_lost_seconds": config.max_lost_seconds, **self.tracker.options()},
            )
            runner.run(
                "head",
                lambda progress: self.fit_head(),
                [self.work(f"{i}_head.npz"), self.person(i, "tracking.npz")],
                needs=["landmarks"],
                options={"ipd": config.ipd},
                version=2,
            )
            runner.run(
                "expression",
                lambda progress: self.measure_face(i, progress),
                [self.work(f"{i}_motion.npz"), self.person(i, "face.npz")],
                needs=["head"],
                options=self.expression_options(),
                version=2,
            )
        else:
            runner.run(
                "head",
                lambda progress: self.take_head(),
                [self.work(f"{i}_head.npz"), self.work(f"{i}_motion.npz")],
                needs=["pictures"],
                options={"face": self.face},
                version=2,
            )
        runner.run(
            "boxes",
            lambda progress: self.measure_boxes(i, progress),
            [self.work(f"{i}_boxes.npz")],
            needs=["pictures", "head"],
        )
        runner.run(
            "audio",
            self.write_audio,
            [self.output / "audio.wav", *feature_files(self.output, config)],
            options=feature_stage_options(config),
        )
        if config.rttm is not None:
            return self.finish(self.given_roles() or [])
        runner.run("roles", self.find_speech, [self.work("roles.rttm")], needs=["audio"], options={"id": i})
        return self.finish(read_rttm(self.work("roles.rttm")))

    # Pictures.

    def write_pictures(self, progress: Callable[[float], None]) -> None:
        folder = self.folder
        video, maps = self.person(self.participant, "video.mp4"), self.person(self.participant, "labels.mkv")
        with (
            VideoWriter(video, FPS, folder.width, folder.height) as frames,
            LabelWriter(maps, FPS, folder.width, folder.height) as labels,
        ):
            for frame in range(folder.num_frames):
                # A frame that is not listed is in no split; it shows what was there last.
                if folder.listed[frame]:
                    picture, label = folder.picture(frame), folder.labels(frame)
                frames.write(picture)
                labels.write(label)
                progress((frame + 1) / folder.num_frames)
        plate, holes = folder.background(), None
        if plate is None:
            with FrameReader(video) as pictures, LabelReader(maps) as parts:
                plate, holes = background_plate(pictures, parts)
        write_plate(video.parent, plate, holes)

    # The head.

    def track_landmarks(self, participant: str, progress: Callable[[float], None]) -> None:
        with FrameReader(self.person(participant, "video.mp4")) as reader:
            track = self.tracker.track(reader.iterate(), self.num_frames, progress)
        track.visible &= self.folder.listed
        # Frames that are not listed were not asked for; they are no loss.
        wanted = track.visible | ~self.folder.listed if track.visible.any() else track.visible
        require_face(wanted, FPS, self.config.max_lost_seconds, str(self.folder.pictures), participant)
        bridged(track).save(self.work(f"{participant}_landmarks.npz"))

    def poses(self) -> Tuple[np.ndarray, np.ndarray]:
        """The folder's poses, bridged where a frame is not listed."""
        folder = self.folder
        mean = Rotation.from_matrix(folder.rotations[folder.listed]).mean()
        vectors = np.zeros((folder.num_frames, 3))
        vectors[folder.listed] = (mean.inv() * Rotation.from_matrix(folder.rotations[folder.listed])).as_rotvec()
        rotations = (mean * Rotation.from_rotvec(fill_gaps(vectors, folder.listed))).as_matrix()
        return rotations, fill_gaps(folder.translations, folder.listed)

    def fit_head(self) -> None:
        folder, participant = self.folder, self.participant
        track: LandmarkTrack = self.landmarks(participant)
        rotations, translations = self.poses()
        head, fit = head_from_given_poses(
            track, folder.width, folder.height, rotations, translations, folder.focal, folder.center, self.config.ipd
        )
        error = float(np.median(head.reprojection_error[track.visible]))
        offset = float(np.linalg.norm(fit.shift) / fit.scale)
        turn = float(Rotation.from_matrix(fit.rotation).magnitude())
        if not (error < LARGEST_ERROR * folder.width and offset < LARGEST_OFFSET and turn < LARGEST_TURN):
            raise DialogueError(
                f"{folder.path}: the poses do not belong to {folder.pictures.name} or follow another convention (they "
                f"put the face {error:.0f} pixels off, turn it about a point {offset:.2f} m from the head, "
                f"facing {np.degrees(turn):.0f} degrees away); give camera to world in metres, with the camera looking "
                "along -z and y up."
            )
        self.save_head(participant, head, (folder.width, folder.height), scale=np.array(1.0 / fit.scale))
        self.save_tracking(participant, head, track)

    def take_head(self) -> None:
        """Poses and face as the folder has them, with its head space as ours."""
        folder = self.folder
        rotations, translations = self.poses()
        none = np.zeros(folder.num_frames)
        jitter = rotation_jitter(rotations[folder.listed])
        head = HeadTrack(mean_face(), rotations, translations, none, folder.focal, folder.center, jitter)
        self.save_head(self.participant, head, (folder.width, folder.height), scale=np.array(1.0))
        expression, names, basis = np.zeros((folder.num_frames, len(EXPRESSION_NAMES))), EXPRESSION_NAMES, None
        sources = {"head_pose": "AD-NeRF-family folder"}
        if self.face == "face-model":
            expression = face_model_coefficients(folder.path / "track_params.pt", folder.first, folder.num_frames)
            names = tuple(f"coefficient_{index}" for index in range(expression.shape[1]))
            basis = FACE_MODEL_BASIS.format(len(names))
            sources["expression"] = "track_params.pt"
        blink = np.zeros((folder.num_frames, 2))
        if (folder.path / "au.csv").is_file():
            blink = closure_from_action_units(folder.path / "au.csv", folder.first, folder.num_frames)
            sources["blink"] = "au.csv"
        motion = Motion(
            head_pose=head.head_pose(head.person_origin(folder.listed)),
            expression=expression,
            blink=blink,
            gaze=np.zeros((folder.num_frames, 2, 2)),
            expression_residual=np.zeros((folder.num_frames, 0)),
            fps=FPS,
            expression_names=names,
            sources=sources,
            **({} if basis is None else {"expression_basis": basis}),
        )
        motion.validate(str(folder.path))
        motion.save(self.work(f"{self.participant}_motion.npz"))

    def visible(self) -> np.ndarray:
        """Frames whose pose is trusted."""
        return self.landmarks(self.participant).visible if self.face == "tracked" else self.folder.listed

    def measure_boxes(self, participant: str, progress: Callable[[float], None]) -> None:
        head, size = self.head(participant)
        origin = head.person_origin(self.visible())
        with LabelReader(self.person(participant, "labels.mkv")) as labels:
            head_box, torso_box = body_boxes(
                labels.iterate(), head.head_pose(origin), head.camera(origin, *size), head.shape, progress
            )
        if self.face != "tracked":
            head_box[:, 2] += np.array([-UNKNOWN_ORIGIN_MARGIN, UNKNOWN_ORIGIN_MARGIN])
        write_npz(self.work(f"{participant}_boxes.npz"), head_box=head_box, torso_box=torso_box)

    # Sound.

    def write_audio(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio, save_wav
        from dialogue_nerfstudio.process.features import write_features

        folder, path = self.folder, self.folder.sound()
        start, length = self.audio_start(), round(self.num_frames / FPS * SAMPLE_RATE)
        sound = np.zeros(length, np.float32)
        if path is not None:
            whole = load_audio(path)
            missing = (start + length - len(whole)) / SAMPLE_RATE
            if missing > SLACK_SECONDS:
                raise DialogueError(
                    f"{path} lasts {len(whole) / SAMPLE_RATE:.1f} s, but frames up to aud_id "
                    f"{folder.first + folder.audio_shift + folder.num_frames - 1} need {missing:.1f} s more at {FPS:g} "
                    "a second; give the whole sound of the video."
                )
            part = whole[start : start + length]
            sound[: len(part)] = part
        save_wav(self.output / "audio.wav", sound)
        for name, path in folder.audio_features().items():
            values = self.stored_feature(path).astype(np.float32)
            write_npz(self.output / "features" / f"{name}.npz", features=values)
        kinds, weights = feature_options(self.config)
        write_features(self.output, sound, SAMPLE_RATE, self.num_frames, FPS, progress, kinds, weights)

    def audio_start(self) -> int:
        """The sample of the whole sound at which the timeline begins.

        Raises:
            DialogueError: that is before the sound.
        """
        first = self.folder.first + self.folder.audio_shift
        if first < 0:
            raise DialogueError(
                f"{self.folder.path}: aud_id begins with {first}, before the sound; number it from 0 on."
            )
        return round(first / FPS * SAMPLE_RATE)

    def stored_feature(self, path: Path) -> np.ndarray:
        """A row a frame of an aud*.npy; the last row stands for the few that may be missing at the end.

        Raises:
            DialogueError: it is no array of numbers, or too short.
        """
        try:
            values = np.load(path, allow_pickle=False)
        except Exception as error:  # np.load raises value, EOF and OS errors for damaged files and for pickles
            raise DialogueError(
                f"{path} is not a readable array of numbers ({error}); restore or remove it."
            ) from error
        if values.ndim < 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise DialogueError(f"{path} is not an array of finite numbers; restore or remove it.")
        last = self.folder.first + self.folder.audio_shift + self.num_frames - 1
        if len(values) + SLACK_SECONDS * FPS <= last:
            raise DialogueError(
                f"{path} has {len(values)} rows, but frames up to aud_id {last} are listed; extract it from the whole "
                "sound, or remove it."
            )
        rows = np.arange(self.num_frames) + last - self.num_frames + 1
        return values[np.minimum(rows, len(values) - 1)]

    def find_speech(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio
        from dialogue_nerfstudio.process.diarization import diarize

        heard: List[SpeechSegment] = []
        if self.folder.sound() is not None:
            heard = diarize(load_audio(self.output / "audio.wav"), SAMPLE_RATE, 1)
        write_rttm(self.work("roles.rttm"), [SpeechSegment(part.start, part.end, self.participant) for part in heard])

    # The conversation.

    def finish(self, segments: List[SpeechSegment]) -> Conversation:
        folder, participant = self.folder, self.participant
        head, size = self.head(participant)
        boxes = read_npz(self.work(f"{participant}_boxes.npz"))
        conversation = Conversation(
            num_frames=self.num_frames,
            participants=[
                Participant(
                    id=participant,
                    name=participant,
                    camera=head.camera(head.person_origin(self.visible()), *size),
                    head_box=boxes["head_box"],
                    torso_box=boxes["torso_box"],
                    motion=Motion.load(self.work(f"{participant}_motion.npz")),
                    source={
                        "folder": folder.path.name,
                        "pictures": folder.pictures.name,
                        "first_img_id": folder.first,
                        "metres_a_unit": float(read_npz(self.work(f"{participant}_head.npz"))["scale"]),
                    },
                )
            ],
            segments=clipped(segments, self.num_frames / FPS),
            train_frames=folder.train_frames,
            eval_frames=folder.eval_frames,
            fps=FPS,
            provenance={
                "program": "dialogue-nerfstudio",
                "version": dialogue_nerfstudio.__version__,
                "command": "process",
                "inputs": [folder.path.name],
                "format": "AD-NeRF family",
                **({"tracker": self.tracker.provenance()} if self.face == "tracked" else {}),
                "options": {
                    "ipd": self.config.ipd,
                    "rttm": None if self.config.rttm is None else self.config.rttm.name,
                },
            },
            root=self.output,
        )
        # Told, never refused: others have trained on such folders, and without landmarks there is nothing to measure.
        if self.face == "tracked":
            self.run_report(conversation, ["expression", "audio"])
        self.remove_strangers()
        write_json(self.output / "process.json", self.summary(conversation))
        save_conversation(conversation, self.output)
        return conversation

    def summary(self, conversation: Conversation) -> Dict[str, Any]:
        person, folder = conversation.participants[0], self.folder
        head, _ = self.head(person.id)
        visible = self.visible()
        error = float(np.sqrt(np.mean(head.reprojection_error[visible] ** 2))) if self.face == "tracked" else None
        return {
            "num_frames": conversation.num_frames,
            "fps": conversation.fps,
            "inputs": [folder.path.name],
            "participants": {
                person.id: {
                    "picture": [person.camera.width, person.camera.height],
                    "lost_frames": int((~visible).sum()),
                    "reprojection_rmse_px": error,
                    "rotation_jitter_degrees": head.jitter,
                    "metres_a_unit": person.source["metres_a_unit"],
                    "blinks_per_second": blinks_per_second(person.motion.blink, conversation.fps),
                    "speaking_share": float(conversation.speaking.mean()),
                }
            },
            "notes": self.notes(),
            **({"quality": read_json(self.work("quality.json"))} if self.face == "tracked" else {}),
            "seconds": {**self.runner.seconds, "total": float(sum(self.runner.seconds.values()))},
            "stages_run": self.runner.ran,
        }

    def notes(self) -> List[str]:
        """What was taken over and what was not, a sentence each."""
        folder = self.folder
        unlisted = int((~folder.listed).sum())
        found = [
            f"Poses, focal length, {folder.pictures.name}, parsing and the split into {len(folder.train_frames)} and "
            f"{len(folder.eval_frames)} frames are the folder's own.",
            {
                "tracked": "Expression, blink and gaze were measured on the pictures; au.csv and track_params.pt are "
                "not used.",
                "face-model": "mediapipe is not installed: expression comes from track_params.pt, in a basis of its "
                "own that drives no other avatars, blink from au.csv where there is one; there is no gaze.",
                "none": "mediapipe is not installed and there is no track_params.pt, so there is no expression and no "
                "gaze: train with --pipeline.model.drive audio.",
            }[self.face],
        ]
        if self.face == "tracked" and self.tracker.lacks:
            found.append(lacks_sentence(self.tracker))
        if unlisted:
            found.append(f"{unlisted} frames are in neither transforms file and in no split.")
        if folder.background() is None:
            found.append("There is no bc.jpg: the background was put together from the pictures.")
        if folder.sound() is None:
            found.append("There is no aud.wav, so nothing can be driven by sound; faces follow expression.")
        if folder.audio_features():
            found.append(
                f"Kept as features: {', '.join(sorted(folder.audio_features()))}; what drives a face by sound is the "
                "mel spectrogram of the sound itself."
            )
        return found


def _fingerprint(folder: AdNerfFolder) -> List[List[Any]]:
    """What tells one state of a folder from another, by the sizes and times of its files."""
    files = [path for path in sorted(folder.path.iterdir()) if path.is_file()]
    many = hashlib.sha256()
    for frame in np.flatnonzero(folder.listed).tolist():
        many.update(repr(source_fingerprint([folder.picture_path(frame), folder.parsing_path(frame)])).encode())
    return [*source_fingerprint(files), ["pictures", many.hexdigest()]]
