"""Media in, a Conversation folder out: the stages in the order a frame goes through them.

    face_model   the expression basis, where it is a given one         (face_models)
    shots        where the video is cut                               (shots)
    people       who is where in the picture                          (faces)
    crops        one constant-rate video a person                     (faces, decode)
    landmarks    478 points a frame                                   (landmarks)
    head         own shape, camera, head poses                        (head_pose, clip_fit, head_registration)
    expression   shared basis, residual, blink, gaze, mouth           (expression)
    labels       background, torso, neck, head                        (labels)
    background   the plate behind the person                          (background)
    sway         what the shoulders do beyond following the head      (sway)
    boxes        where head and torso can be                          (boxes)
    audio        the sound and its features                           (audio_features)
    voices       who speaks when                                      (diarization, pyannote_environment)
    roles        which face each voice belongs to                     (voices)
    tracks       each participant's own sound                         (participant_audio)
    report       what the result is worth as training data            (quality, report)

Every stage leaves files and a stamp (see `stages`); conversation.json comes last. Frames are streamed: memory does not
grow with the length of the video. Audio and voices run beside the stages from crops to boxes, participants side by
side.
"""

import re
import shutil
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Literal, Optional, Sequence, Tuple, Union

import cv2
import numpy as np
from jaxtyping import Float

import dialogue_nerfstudio
from dialogue_nerfstudio.conversation.conversation import (
    HOLES_NAME,
    PLATE_NAME,
    SAMPLE_RATE,
    Conversation,
    Participant,
    save_conversation,
)
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.expression_basis import ExpressionBasis
from dialogue_nerfstudio.conversation.files import read_json, read_npz, write_json, write_npz
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, segments_to_frames, write_rttm
from dialogue_nerfstudio.conversation.split import split_frames
from dialogue_nerfstudio.conversation.video import FrameReader, GreyReader, LabelReader, LabelWriter, VideoWriter
from dialogue_nerfstudio.metrics.tracking import blinks_per_second
from dialogue_nerfstudio.process.background import background_plate, write_plate
from dialogue_nerfstudio.process.boxes import body_boxes
from dialogue_nerfstudio.process.clip_fit import refine_head
from dialogue_nerfstudio.process.decode import FPS, MIN_FRAMES, SourceVideo, probe
from dialogue_nerfstudio.process.expression import measure_face
from dialogue_nerfstudio.process.face_mesh import require_mediapipe
from dialogue_nerfstudio.process.face_models import KINDS, face_basis, model_files
from dialogue_nerfstudio.process.faces import FaceLooks, crop_size, find_people, write_crops
from dialogue_nerfstudio.process.given_labels import GivenLabels, label_media
from dialogue_nerfstudio.process.head_pose import HeadTrack, track_head
from dialogue_nerfstudio.process.head_registration import register_head
from dialogue_nerfstudio.process.labels import write_labels
from dialogue_nerfstudio.process.landmarks import LandmarkTrack, bridged, require_face
from dialogue_nerfstudio.process.lip_registration import register_lips
from dialogue_nerfstudio.process.masks import are_given, check_masks, labeller, mask_files
from dialogue_nerfstudio.process.quality import REPORT_NAME, measure_quality, unusable_sentences
from dialogue_nerfstudio.process.shots import describe_shots, find_cuts, shots_between
from dialogue_nerfstudio.process.stages import Progress, StageRunner, source_fingerprint
from dialogue_nerfstudio.process.sway import measure_sway
from dialogue_nerfstudio.process.trackers import FaceTracker, TrackerConfig, lacks_sentence, make_tracker

if TYPE_CHECKING:
    from dialogue_nerfstudio.process.pyannote_environment import PyannoteConfig

MAX_WORKERS = 4
"""Most participants worked on at once."""

FACE_MODEL_NAME = "face_model.npz"
"""The basis of a conversation's expressions, where it is not the shared one."""

MAX_SOUNDLESS_SHARE = 0.25
"""Largest part of the pictures, at their end, that may have no sound: a face that talks in silence would be learned."""

MAX_SOUNDLESS_SECONDS = 1.0
"""Sound may end this much (s) before the pictures however short they are: recorders rarely stop both together."""

WORK_FOLDER = ".process"
"""Stamps and what only later stages read."""


@dataclass
class ProcessConfig:
    """Options of processing a video."""

    num_people: Optional[int] = None
    """How many people to expect in the picture (with several videos: one in each); None finds out."""
    names: Tuple[str, ...] = ()
    """Their ids, from left to right or in the order of the videos; p0, p1, … if empty."""
    shot: Union[int, Literal["all"], None] = None
    """Which shot of a video with cuts to take, counted from 1; None takes the longest that shows the people, all makes
    a conversation of each (see recordings)."""
    size: Optional[int] = None
    """Height and width of each person's picture, pixels; None keeps the recording's own up to 512."""
    focal: Optional[float] = None
    """Focal length in pixels of the person's picture; None is twice its width."""
    ipd: float = 0.063
    """Distance between the pupils, metres: what gives the scene its scale."""
    audio: Tuple[Path, ...] = ()
    """Sound in place of the videos' own, beginning with their first picture: one file of everybody, or one for each
    video."""
    without_sound: bool = False
    """Take silence for the sound, so that videos without any can be used; nothing can then be driven by sound."""
    rttm: Optional[Path] = None
    """Who speaks when; None finds out by diarization. Speakers named by participants' ids are taken at their word;
    under other names they are voices, given to the faces whose lips follow them."""
    audio_features: Tuple[str, ...] = ("mel", "prosody")
    """What avatars can hear: mel, mfcc, prosody, wav2lip, contrastive, hubert, wav2vec2."""
    audio_weights: Tuple[str, ...] = ()
    """Where their networks are, KIND=PATH each: wav2lip.pth, a lip-sync run's config.yml, a folder of transformers'
    format, or a hub name."""
    diarizer: Literal["default", "pyannote"] = "default"
    """Who tells voices apart: this package, or pyannote.audio in an environment of its own (`ns-dialogue
    install-pyannote`)."""
    num_voices: Optional[int] = None
    """How many voices there are in the sound, where people out of the picture speak too; None for one a person."""
    pyannote_model: str = "pyannote/speaker-diarization-community-1"
    """pyannote's pipeline: a name on the Hugging Face hub, or a folder."""
    pyannote_folder: Optional[Path] = None
    """pyannote's environment, if not in the user's cache folder."""
    hf_token: Optional[str] = None
    """Token of the Hugging Face hub for a gated model; None for HF_TOKEN, or that of `hf auth login`."""
    eval_fraction: float = 0.1
    """Part of the frames, at the end, held out from training."""
    max_lost_seconds: float = 1.0
    """Longest time a face may be out of sight; shorter losses are bridged."""
    masks: Tuple[str, ...] = ("selfie",)
    """Where label maps come from: selfie (built in), the path of MediaPipe's selfie_multiclass_256x256.tflite or of
    BiSeNet's face-parsing weights (.pth), or the user's own label videos or folders of PNGs, one a person."""
    tracker: TrackerConfig = field(default_factory=TrackerConfig)
    """What finds the faces' landmarks."""
    num_residuals: int = 8
    """Components of the personal expression residual."""
    joint_fit: bool = False
    """Fit poses, own shape and expressions once more all together, by all landmarks; without it poses come from the
    landmarks that move with the skull alone."""
    register_head: bool = True
    """Make head poses finer by registering the pictures of the face to their mean."""
    register_lips: bool = True
    """Make expressions of the mouth finer by what lips look like in all frames."""
    face_model: Optional[str] = None
    """In which basis expressions are measured: shared, bfm2009, bfm2017, flame or ict; None is the shared one, or what
    face_model_path is."""
    face_model_path: Optional[Path] = None
    """The face model's file or folder, or what `ns-dialogue face-model` made of it."""
    face_model_landmarks: Optional[Path] = None
    """Where the face model's landmarks are, if its shape is not to decide: 68 vertices, or FLAME's published .npz."""
    allow_unusable: bool = False
    """Write the conversation even if its quality report calls it unusable for training."""


def process_video(
    inputs: Sequence[Path], output: Path, config: Optional[ProcessConfig] = None, progress: Optional[Progress] = None
) -> Conversation:
    """Turns one video of everybody, or one synchronous video of each person, into a conversation folder.

    Args:
        inputs: video files.
        output: the folder to make; where an earlier run was interrupted, it goes on.
        config: options.
        progress: called as progress(stage, done, total).

    Raises:
        DialogueError: naming what is wrong with which input, option or frame; finished stages stay.
    """
    return Processing.of(inputs, output, config, progress).run()


def check_options(config: ProcessConfig, paths: Sequence[Path]) -> None:
    if not paths:
        raise DialogueError("No video was given: name at least one.")
    if config.num_people is not None and config.num_people < 1:
        raise DialogueError(f"num_people must be at least 1, not {config.num_people}.")
    if len(paths) > 1 and config.num_people not in (None, len(paths)):
        raise DialogueError(
            f"{len(paths)} videos are one a person, but {config.num_people} people were asked for: "
            "give one video of everybody or leave num_people out."
        )
    if config.audio and config.without_sound:
        raise DialogueError("audio and without_sound exclude each other: give the sound, or go without.")
    if len(config.audio) not in (0, 1, len(paths)):
        raise DialogueError(
            f"{len(config.audio)} sound files were given for {len(paths)} video(s): give one of everybody, or one for "
            "each video in the same order."
        )
    for path in config.audio:
        if not Path(path).is_file():
            raise DialogueError(f"There is no file {path}: give the path of an audio file.")
    if config.shot == "all":
        raise DialogueError("shot must be one shot's number here: all of them are several conversations.")
    if config.shot is not None and config.shot < 1:
        raise DialogueError(f"shot must be at least 1, not {config.shot}.")
    feature_options(config)
    if config.num_voices is not None and config.num_voices < 1:
        raise DialogueError(f"num_voices must be at least 1, not {config.num_voices}.")
    if config.diarizer == "pyannote" and config.rttm is None:
        from dialogue_nerfstudio.process.pyannote_environment import check_pyannote

        check_pyannote(pyannote_config(config))
    if config.size is not None and (config.size < 64 or config.size % 2):
        raise DialogueError(f"size must be an even number of at least 64 pixels, not {config.size}.")
    if config.focal is not None and not config.focal > 0:
        raise DialogueError(f"focal must be a positive number of pixels, not {config.focal}.")
    if not 0.03 < config.ipd < 0.1:
        raise DialogueError(f"ipd is the distance between the pupils in metres, about 0.063, not {config.ipd}.")
    if not 0.0 < config.eval_fraction < 1.0:
        raise DialogueError(f"eval_fraction must lie between 0 and 1, not {config.eval_fraction}.")
    for name in config.names:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise DialogueError(
                f"The name '{name}' may hold only letters, digits, _ and -: it names files and speakers."
            )
    if len(set(config.names)) != len(config.names):
        raise DialogueError(f"The names {', '.join(config.names)} must differ from each other.")
    if config.face_model not in (None, *KINDS):
        raise DialogueError(f"There is no face model '{config.face_model}'; there are {', '.join(KINDS)}.")
    check_masks(config.masks)
    if config.rttm is not None and not Path(config.rttm).is_file():
        raise DialogueError(
            f"There is no file {config.rttm}: give the path of an RTTM file, or leave it out to have the speakers "
            "found."
        )


def feature_options(config: ProcessConfig) -> Tuple[Tuple[str, ...], Dict[str, str]]:
    """The audio features to make, mel always among them, and where their networks are, by kind.

    Raises:
        DialogueError: an unknown feature, or weights of one that is not made.
    """
    from dialogue_nerfstudio.process.features import FEATURE_KINDS, parse_weights

    # Rows of mel are what the report looks at and what avatars hear by default.
    kinds = tuple(dict.fromkeys(("mel", *config.audio_features)))
    unknown = [kind for kind in kinds if kind not in FEATURE_KINDS]
    if unknown:
        raise DialogueError(f"There is no audio feature '{unknown[0]}'; choose from {', '.join(FEATURE_KINDS)}.")
    weights = parse_weights(config.audio_weights)
    idle = [kind for kind in weights if kind not in kinds]
    if idle:
        raise DialogueError(f"Weights were given for '{idle[0]}', which is not made: add it to --audio-features.")
    for kind, file in (("wav2lip", "wav2lip.pth"), ("contrastive", "a lip-sync run's config.yml")):
        if kind in kinds and kind not in weights:
            raise DialogueError(
                f"The audio feature {kind} needs its weights: give --audio-weights {kind}=PATH of {file}."
            )
    return kinds, weights


def feature_files(output: Path, config: ProcessConfig) -> List[Path]:
    return [output / "features" / f"{kind}.npz" for kind in feature_options(config)[0]]


def feature_stage_options(config: ProcessConfig) -> Dict[str, Any]:
    """What decides the features besides the sound."""
    kinds, weights = feature_options(config)
    files = [Path(path) for path in weights.values() if Path(path).is_file()]
    return {"features": kinds, "weights": weights, "files": source_fingerprint(files)}


def check_output(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise DialogueError(f"{output} is a file: give the name of a folder to write.")
    if output.is_dir() and any(output.iterdir()) and not (output / WORK_FOLDER).is_dir():
        raise DialogueError(f"{output} already holds other files: give a new folder, or an earlier output of process.")


class Processing:
    """One run: holds what the stages share."""

    @classmethod
    def of(
        cls,
        inputs: Sequence[Path],
        output: Path,
        config: Optional[ProcessConfig] = None,
        progress: Optional[Progress] = None,
        shots: Optional[List[Tuple[int, int]]] = None,
    ) -> "Processing":
        """The run that these inputs and options ask for; `shots` where they are known already.

        Raises:
            DialogueError: naming what is wrong with which input or option.
        """
        config, output, paths = config or ProcessConfig(), Path(output), [Path(path) for path in inputs]
        check_options(replace(config, shot=None) if config.shot == "all" else config, paths)
        check_output(output)
        tracker = make_tracker(config.tracker)
        require_mediapipe()
        tracker.require()
        return cls(paths, output, config, progress, tracker, shots)

    def __init__(
        self,
        paths: List[Path],
        output: Path,
        config: ProcessConfig,
        progress: Optional[Progress],
        tracker: FaceTracker,
        shots: Optional[List[Tuple[int, int]]] = None,
    ):
        self.paths, self.output, self.config, self.tracker = paths, output, config, tracker
        self._known_shots = shots
        self._looks: List[FaceLooks] = []
        self._sound: Optional[Future] = None
        self._stopping = Event()
        self.sources: List[SourceVideo] = [
            probe(path, needs_sound=not (config.audio or config.without_sound)) for path in paths
        ]
        self.num_frames = min(source.num_frames for source in self.sources)
        self.runner = StageRunner(output, output / WORK_FOLDER, source_fingerprint(paths), self.told(progress))

    def told(self, progress: Optional[Progress]) -> Progress:
        """`progress`, which also ends what runs beside something that failed: threads cannot be ended from outside."""

        def tell(stage: str, done: float, total: float) -> None:
            if self._stopping.is_set():
                raise CancelledError(f"{stage}: another stage failed")
            if self._sound is not None and self._sound.done() and self._sound.exception() is not None:
                raise self._sound.exception()
            if progress is not None:
                progress(stage, done, total)

        return tell

    def work(self, *parts: str) -> Path:
        return self.output.joinpath(WORK_FOLDER, *parts)

    def person(self, participant: str, name: str) -> Path:
        return self.output / "participants" / participant / name

    def run(self) -> Conversation:
        """All stages. OpenCV keeps to one thread: sharing out pictures this small takes half as much time again, and
        people and sound side by side fill the cores."""
        threads = cv2.getNumThreads()
        cv2.setNumThreads(1)
        try:
            return self.run_stages()
        finally:
            cv2.setNumThreads(threads)

    def run_stages(self) -> Conversation:
        runner, config = self.runner, self.config
        self.prepare_basis()
        self.shots = self.read_shots()
        runner.run(
            "people",
            self.find_people,
            [self.work("people_found.json"), self.work("shot.json")],
            needs=["shots"],
            options={"num_people": config.num_people, "shot": config.shot},
            version=3,
        )
        self._looks = []
        self.people = read_json(self.work("people_found.json"))
        self.start, stop = read_json(self.work("shot.json"))
        self.whole_length = self.num_frames
        self.sources = [source.part(self.start, stop) for source in self.sources]
        self.num_frames = stop - self.start
        self.ids = self.participant_ids()
        given_roles, self.given_labels = self.given_roles(), self.find_given_labels()
        self.sound_notes = self.check_sound()

        with ThreadPoolExecutor(max_workers=1) as pool:
            self._sound = pool.submit(self.run_sound, given_roles is None)
            try:
                self.run_pictures()
                self._sound.result()
            except BaseException:
                self._stopping.set()
                raise
        if given_roles is None:
            runner.run(
                "roles",
                self.assign_roles,
                [self.work("roles.rttm"), self.work("roles_found.json")],
                needs=["voices", "expression"],
                version=2,
            )
            segments = read_rttm(self.work("roles.rttm"))
        else:
            segments = given_roles
        self.run_tracks(clipped(segments, self.num_frames / FPS))
        conversation = self.assemble(segments)
        self.run_report(conversation, ["expression", "background", "audio"])
        if not config.allow_unusable:
            self.refuse_unusable(read_json(self.work("quality.json")))
        return self.finish(conversation)

    def run_pictures(self) -> None:
        """The stages that look at pictures and at what was seen in them."""
        runner, config, each = self.runner, self.config, self.ids
        runner.run(
            "crops",
            self.write_crops,
            [self.person(i, "video.mp4") for i in each],
            needs=["people"],
            options={"size": config.size, "ids": each},
            version=2,
        )
        runner.run(
            "landmarks",
            self.for_each_person(self.track_landmarks),
            [self.work(f"{i}_landmarks.npz") for i in each],
            needs=["crops"],
            options={"max_lost_seconds": config.max_lost_seconds, **self.tracker.options()},
        )
        runner.run(
            "head",
            self.for_each_person(self.track_head),
            [self.work(f"{i}_head.npz") for i in each] + [self.person(i, "tracking.npz") for i in each],
            needs=["landmarks"],
            options={
                "focal": config.focal,
                "ipd": config.ipd,
                "joint_fit": config.joint_fit,
                "register_head": config.register_head,
            },
            version=5,
        )
        runner.run(
            "expression",
            self.for_each_person(self.measure_face),
            [self.work(f"{i}_motion.npz") for i in each] + [self.person(i, "face.npz") for i in each],
            needs=["head"],
            options=self.expression_options(),
            version=3,
        )
        runner.run(
            "labels",
            self.for_each_person(self.write_labels),
            [self.person(i, "labels.mkv") for i in each],
            needs=["landmarks"],
            options={"masks": list(config.masks), "files": source_fingerprint(mask_files(config.masks))},
            version=6,
        )
        runner.run(
            "background",
            self.for_each_person(self.write_background),
            [self.person(i, name) for i in each for name in (PLATE_NAME, HOLES_NAME)],
            needs=["labels"],
            version=3,
        )
        runner.run(
            "sway",
            self.for_each_person(self.measure_sway),
            [self.work(f"{i}_sway.npz") for i in each],
            needs=["labels", "head"],
            version=4,
        )
        runner.run(
            "boxes",
            self.for_each_person(self.measure_boxes),
            [self.work(f"{i}_boxes.npz") for i in each],
            needs=["labels", "head"],
        )

    def run_sound(self, find_voices: bool) -> None:
        """The stages that only listen: beside those of the pictures, which leave cores idle where they are serial."""
        runner, config = self.runner, self.config
        runner.run(
            "audio",
            self.write_audio,
            [self.output / "audio.wav", *feature_files(self.output, config)],
            options={
                **feature_stage_options(config),
                "num_frames": self.num_frames,
                "start": self.start,
                "audio": source_fingerprint(config.audio),
                "without_sound": config.without_sound,
            },
        )
        if find_voices:
            runner.run(
                "voices",
                self.find_voices,
                [self.work("voices.rttm")],
                needs=["audio"],
                options={
                    "voices": config.num_voices or len(self.ids),
                    "diarizer": config.diarizer,
                    "model": config.pyannote_model if config.diarizer == "pyannote" else None,
                    "rttm": source_fingerprint([] if config.rttm is None else [Path(config.rttm)]),
                },
                version=3,
            )

    # Who is where.

    def read_shots(self) -> List[Tuple[int, int]]:
        """The shots, looked for unless that was done."""
        self.runner.run("shots", self.find_shots, [self.work("shots_found.json")])
        return [(start, stop) for start, stop in read_json(self.work("shots_found.json"))]

    def find_shots(self, progress: Callable[[float], None]) -> None:
        if self._known_shots is not None:
            write_json(self.work("shots_found.json"), self._known_shots)
            return
        with ExitStack() as stack:
            # Where nothing is cut, which is what most videos are, one pass is enough for shots and faces.
            looks = [] if self.config.shot is not None else [FaceLooks(s, self.num_frames) for s in self.sources]
            also = [(stack.enter_context(each).add,) for each in looks] or [()] * len(self.sources)
            cuts = [
                find_cuts(source, lambda f, i=index: progress((i + f) / len(self.sources)), *also[index])
                for index, source in enumerate(self.sources)
            ]
        shots = shots_between(cuts, self.num_frames)
        self._looks = looks if len(shots) == 1 else []
        write_json(self.work("shots_found.json"), shots)

    def find_people(self, progress: Callable[[float], None]) -> None:
        """Looks for people in the asked shot, else in one after the other from the longest on."""
        shots = sorted(self.shots, key=lambda shot: shot[0] - shot[1])
        if self.config.shot is not None:
            if self.config.shot > len(self.shots):
                raise DialogueError(
                    f"There is no shot {self.config.shot}; the shots are {describe_shots(self.shots, FPS)}."
                )
            shots = [self.shots[self.config.shot - 1]]
        long_enough = [shot for shot in shots if shot[1] - shot[0] >= MIN_FRAMES]
        if not long_enough:
            raise DialogueError(
                f"No shot is as long as {MIN_FRAMES} frames ({describe_shots(shots, FPS)}): give a video with fewer "
                "cuts."
            )
        reasons: List[DialogueError] = []
        for start, stop in long_enough:
            try:
                found = self.people_between(start, stop, progress)
            except DialogueError as error:
                reasons.append(error)
                continue
            write_json(self.work("shot.json"), [start, stop])
            write_json(self.work("people_found.json"), found)
            return
        raise reasons[0]

    def people_between(self, start: int, stop: int, progress: Callable[[float], None]) -> List[Dict[str, Any]]:
        found: List[Dict[str, Any]] = []
        for index, source in enumerate(self.sources):
            wanted = self.config.num_people if len(self.sources) == 1 else 1
            part = source.part(start, stop)
            if self._looks:
                people = self._looks[index].people(wanted)
            else:
                people = find_people(part, wanted, lambda f, i=index: progress((i + f) / len(self.sources)))
            found += [
                {
                    "source": index,
                    "crop": [int(v) for v in person.crop],
                    "panel": [int(v) for v in person.panel],
                    "face_box": [round(float(v), 1) for v in person.face_box],
                    "looks_found": person.looks_found,
                    "faces_seen": person.faces_seen,
                }
                for person in people
            ]
        return found

    def participant_ids(self) -> List[str]:
        names = list(self.config.names) or [f"p{index}" for index in range(len(self.people))]
        if len(names) != len(self.people):
            raise DialogueError(
                f"{len(names)} name(s) were given ({', '.join(names)}) for {len(self.people)} people found: "
                "give one for each."
            )
        return names

    def sound_files(self) -> List[Path]:
        """Where the sound comes from: one file of everybody, or one for each video; none where there is none."""
        if self.config.without_sound:
            return []
        return [Path(path) for path in self.config.audio or [source.path for source in self.sources]]

    def check_sound(self) -> List[str]:
        """Refuses sound that ends long before the pictures, before any long stage runs; what is missing otherwise, a
        sentence each."""
        from dialogue_nerfstudio.process.audio_features import sound_end

        notes = []
        last = (self.start + self.num_frames) / FPS
        for path in self.sound_files():
            end = sound_end(path)
            missing = 0.0 if end is None else min(last - end, self.num_frames / FPS)
            what = f"The sound of {path} ends after {end or 0.0:.1f} s, the pictures after {last:.1f} s"
            too_much = missing > max(MAX_SOUNDLESS_SECONDS, MAX_SOUNDLESS_SHARE * self.num_frames / FPS)
            if too_much and not self.config.allow_unusable:
                raise DialogueError(
                    f"{what}: give whole sound with --audio, cut the video to where it has sound, or add "
                    "--allow-unusable to take silence for the rest."
                )
            if missing > MAX_SOUNDLESS_SECONDS:
                notes.append(f"{what}: silence was taken for the rest.")
        return notes

    def given_roles(self) -> Optional[List[SpeechSegment]]:
        """The user's RTTM if it names participants, checked before any long stage runs; None where voices are still to
        be given to faces."""
        if self.config.rttm is None:
            return None
        segments = read_rttm(self.config.rttm)
        names = {segment.speaker for segment in segments}
        # A diarizer's own names: with one participant there is nobody to tell apart, and a name may be mistyped.
        if names and not names & set(self.ids) and len(self.ids) > 1:
            return None
        try:
            segments_to_frames(segments, self.ids, 0, FPS)
        except DialogueError as error:
            raise DialogueError(f"{self.config.rttm}: {error}") from error
        return segments

    def find_given_labels(self) -> Dict[str, GivenLabels]:
        """The user's label maps by participant, checked before any long stage runs; empty where they gave none."""
        if not are_given(self.config.masks):
            return {}
        given = {}
        for participant, person, path in zip(
            self.ids, self.people, label_media(self.config.masks, self.ids), strict=True
        ):
            crop, source = np.array(person["crop"]), self.sources[person["source"]]
            given[participant] = GivenLabels(
                path,
                crop,
                crop_size(crop, self.config.size),
                (source.width, source.height),
                self.num_frames,
                (self.start, self.whole_length),
            )
        return given

    def write_crops(self, progress: Callable[[float], None]) -> None:
        for index, source in enumerate(self.sources):
            mine = [(i, person) for i, person in zip(self.ids, self.people, strict=True) if person["source"] == index]
            crops = [np.array(person["crop"]) for _, person in mine]
            sizes = [crop_size(crop, self.config.size) for crop in crops]
            with ExitStack() as stack:
                writers = [
                    stack.enter_context(
                        VideoWriter(self.person(i, "video.mp4"), FPS, size, size, preset="superfast", tune="fastdecode")
                    )
                    for (i, _), size in zip(mine, sizes, strict=True)
                ]
                write_crops(
                    source,
                    crops,
                    sizes,
                    writers,
                    self.num_frames,
                    lambda f, i=index: progress((i + f) / len(self.sources)),
                )

    # For each person.

    def prepare_basis(self) -> None:
        """The basis of expressions: the shared one, or that of a face model, which the conversation then holds."""
        config, prepared = self.config, self.output / FACE_MODEL_NAME
        asked = (config.face_model, config.face_model_path, config.face_model_landmarks)
        if config.face_model_path is None:
            self.basis = face_basis(*asked)
            prepared.unlink(missing_ok=True)
            return
        files = [config.face_model_path] + ([config.face_model_landmarks] if config.face_model_landmarks else [])
        self.runner.run(
            "face_model",
            lambda progress: face_basis(*asked).save(prepared),
            [prepared],
            options={"kind": config.face_model, "files": source_fingerprint(model_files(files))},
        )
        self.basis = ExpressionBasis.load(prepared)

    def for_each_person(
        self, work: Callable[[str, Callable[[float], None]], None]
    ) -> Callable[[Callable[[float], None]], None]:
        """`work` for every participant, side by side: the networks and the codecs run outside Python's lock."""

        def run(progress: Callable[[float], None]) -> None:
            fractions = dict.fromkeys(self.ids, 0.0)
            stopping = Event()

            def report(participant: str, fraction: float) -> None:
                # Threads cannot be ended from outside: after a failure or Ctrl-C each ends itself at its next frame.
                if stopping.is_set():
                    raise CancelledError(f"{participant}: another participant's work failed")
                fractions[participant] = fraction
                progress(sum(fractions.values()) / len(fractions))

            with ThreadPoolExecutor(max_workers=min(len(self.ids), MAX_WORKERS)) as pool:
                jobs = [pool.submit(work, participant, partial(report, participant)) for participant in self.ids]
                try:
                    for job in as_completed(jobs):
                        job.result()
                except BaseException:
                    stopping.set()
                    raise

        return run

    def track_landmarks(self, participant: str, progress: Callable[[float], None]) -> None:
        with FrameReader(self.person(participant, "video.mp4")) as reader:
            track = self.tracker.track(reader.iterate(), self.num_frames, progress)
        source = self.sources[self.people[self.ids.index(participant)]["source"]]
        require_face(track.visible, FPS, self.config.max_lost_seconds, str(source.path), participant)
        bridged(track).save(self.work(f"{participant}_landmarks.npz"))

    def landmarks(self, participant: str) -> LandmarkTrack:
        return LandmarkTrack.load(self.work(f"{participant}_landmarks.npz"))

    def track_head(self, participant: str, progress: Callable[[float], None]) -> None:
        track = self.landmarks(participant)
        with GreyReader(self.person(participant, "video.mp4")) as reader:
            width, height = reader.width, reader.height
            head = track_head(track, width, height, self.config.focal, self.config.ipd)
            if self.config.joint_fit:
                head = refine_head(track, head)
            if self.config.register_head:
                head = register_head(reader.iterate(), head, track.visible, progress)
        self.save_head(participant, head, (width, height))
        self.save_tracking(participant, head, track)

    def save_head(self, participant: str, head: HeadTrack, size: Tuple[int, int], **further: np.ndarray) -> None:
        """What `head` reads: the head of a crop of that width and height, and whatever else is to be kept with it."""
        by_landmarks = head.by_landmarks()
        write_npz(
            self.work(f"{participant}_head.npz"),
            shape=head.shape,
            rotations=head.rotations,
            translations=head.translations,
            landmark_rotations=by_landmarks.rotations,
            landmark_translations=by_landmarks.translations,
            reprojection_error=head.reprojection_error,
            focal=np.array(head.focal),
            center=np.array(head.center),
            jitter=np.array(head.jitter),
            size=np.array(size),
            **further,
        )

    def save_tracking(self, participant: str, head: HeadTrack, track: LandmarkTrack) -> None:
        """tracking.npz: what of the person was seen, and how well."""
        typical = float(np.median(head.reprojection_error[track.visible]))
        # Trust in a frame falls to a half where it fits three times worse than the typical one.
        confidence = track.visible / (1.0 + (head.reprojection_error / (3.0 * max(typical, 1e-6))) ** 4)
        write_npz(
            self.person(participant, "tracking.npz"),
            landmarks=track.points,
            reprojection_error=head.reprojection_error.astype(np.float32),
            confidence=confidence.astype(np.float32),
            visible=track.visible,
            measured=track.measured,
            **track.blendshape_arrays(),
        )

    def head(self, participant: str) -> Tuple[HeadTrack, Tuple[int, int]]:
        arrays = read_npz(self.work(f"{participant}_head.npz"))
        width, height = (int(v) for v in arrays["size"])
        track = HeadTrack(
            shape=arrays["shape"],
            rotations=arrays["rotations"],
            translations=arrays["translations"],
            reprojection_error=arrays["reprojection_error"],
            focal=float(arrays["focal"]),
            center=(float(arrays["center"][0]), float(arrays["center"][1])),
            jitter=float(arrays["jitter"]),
            landmark_poses=(arrays["landmark_rotations"], arrays["landmark_translations"]),
        )
        return track, (width, height)

    def expression_options(self) -> Dict[str, Any]:
        """What decides what `measure_face` finds."""
        config = self.config
        return {
            "num_residuals": config.num_residuals,
            "basis": self.basis.hash,
            "register_lips": config.register_lips,
        }

    def measure_face(self, participant: str, progress: Callable[[float], None]) -> None:
        basis = self.basis
        track, (head, _) = self.landmarks(participant), self.head(participant)
        face = measure_face(track, head, basis, FPS, self.config.num_residuals)
        if self.config.register_lips:
            with GreyReader(self.person(participant, "video.mp4")) as reader:
                face = register_lips(reader.iterate(), head, face, basis, track.visible, progress)
        motion = Motion(
            head_pose=head.head_pose(head.person_origin(track.visible)),
            expression=face.expression,
            blink=face.blink,
            gaze=face.gaze,
            expression_residual=face.residual,
            fps=FPS,
            expression_basis=basis.name,
            expression_names=basis.expression_names,
            sources={name: "tracked" for name in ("head_pose", "expression", "blink", "expression_residual")}
            | {"gaze": "tracked" if track.has_irises else "none: the tracker sees no irises"},
        )
        motion.validate(f"the tracked motion of participant {participant}")
        motion.save(self.work(f"{participant}_motion.npz"))
        write_npz(
            self.person(participant, "face.npz"),
            neutral=head.shape.astype(np.float32),
            geometry=face.geometry.astype(np.float32),
            residual_basis=face.residual_basis.astype(np.float32),
            mouth_opening=face.mouth_opening.astype(np.float32),
            fit_error_mm=np.array(face.fit_error, np.float32),
            expression_basis=np.array(basis.name),
            expression_basis_hash=np.array(basis.hash),
        )

    def write_labels(self, participant: str, progress: Callable[[float], None]) -> None:
        with FrameReader(self.person(participant, "video.mp4")) as reader:
            path = self.person(participant, "labels.mkv")
            with LabelWriter(path, FPS, reader.width, reader.height) as writer:
                if participant in self.given_labels:
                    for index, labels in enumerate(self.given_labels[participant]):
                        writer.write(labels)
                        progress((index + 1) / self.num_frames)
                    return
                with labeller(self.config.masks) as label:
                    write_labels(reader.iterate(), self.landmarks(participant).points, writer, label, progress)

    def write_background(self, participant: str, progress: Callable[[float], None]) -> None:
        video, maps = self.person(participant, "video.mp4"), self.person(participant, "labels.mkv")
        with FrameReader(video) as frames, LabelReader(maps) as labels:
            plate, holes = background_plate(frames, labels, progress)
        write_plate(video.parent, plate, holes)

    def measure_sway(self, participant: str, progress: Callable[[float], None]) -> None:
        head, size = self.head(participant)
        origin = head.person_origin(self.landmarks(participant).visible)
        video, maps = self.person(participant, "video.mp4"), self.person(participant, "labels.mkv")
        with GreyReader(video) as frames, LabelReader(maps) as labels:
            sway = measure_sway(frames, labels, head.camera(origin, *size), head.head_pose(origin), progress)
        write_npz(self.work(f"{participant}_sway.npz"), sway=sway)

    def motion(self, participant: str) -> Motion:
        """All that was tracked of how a person moves."""
        motion = Motion.load(self.work(f"{participant}_motion.npz"))
        sway = read_npz(self.work(f"{participant}_sway.npz"))["sway"]
        source = "tracked" if sway.any() else "none: the torso could not be followed"
        return replace(motion, sway=sway, sources={**motion.sources, "sway": source})

    def measure_boxes(self, participant: str, progress: Callable[[float], None]) -> None:
        head, size = self.head(participant)
        origin = head.person_origin(self.landmarks(participant).visible)
        with LabelReader(self.person(participant, "labels.mkv")) as labels:
            head_box, torso_box = body_boxes(
                labels.iterate(), head.head_pose(origin), head.camera(origin, *size), head.shape, progress
            )
        write_npz(self.work(f"{participant}_boxes.npz"), head_box=head_box, torso_box=torso_box)

    # Sound.

    def write_audio(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio, mix_tracks, save_wav
        from dialogue_nerfstudio.process.features import write_features

        first, length = (round(frames / FPS * SAMPLE_RATE) for frames in (self.start, self.num_frames))
        tracks = []
        for path in self.sound_files():
            track = load_audio(path)[first : first + length]
            tracks.append(np.pad(track, (0, length - len(track))))
        mix = mix_tracks(tracks, length)
        save_wav(self.output / "audio.wav", mix)
        # An earlier run may have had other ones.
        shutil.rmtree(self.output / "audio", ignore_errors=True)
        if len(tracks) > 1:
            for person, participant in zip(self.people, self.ids, strict=True):
                save_wav(self.output / "audio" / f"{participant}.wav", tracks[person["source"]])
        kinds, weights = feature_options(self.config)
        write_features(self.output, mix, SAMPLE_RATE, self.num_frames, FPS, progress, kinds, weights)

    def find_voices(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio

        if self.config.rttm is not None:
            segments = clipped(read_rttm(self.config.rttm), self.num_frames / FPS)
        else:
            segments = recognised_voices(load_audio(self.output / "audio.wav"), len(self.ids), self.config)
        write_rttm(self.work("voices.rttm"), segments)

    def run_tracks(self, segments: List[SpeechSegment]) -> None:
        """audio/<id>.wav by role, where the participants were not recorded apart."""
        apart = len(self.config.audio or self.sources) > 1
        if len(self.ids) > 1 and not apart and not self.config.without_sound:
            self.runner.run(
                "tracks",
                lambda progress: self.split_tracks(segments),
                [self.output / "audio" / f"{i}.wav" for i in self.ids],
                needs=["audio"],
                options={"segments": [[s.start, s.end, s.speaker] for s in segments]},
            )

    def split_tracks(self, segments: List[SpeechSegment]) -> None:
        from dialogue_nerfstudio.process.audio_features import load_audio, save_wav
        from dialogue_nerfstudio.process.participant_audio import split_by_role

        speaking = segments_to_frames(segments, self.ids, self.num_frames, FPS)
        split = split_by_role(load_audio(self.output / "audio.wav"), SAMPLE_RATE, speaking, FPS)
        for participant, track in zip(self.ids, split.tracks, strict=True):
            save_wav(self.output / "audio" / f"{participant}.wav", track)

    def assign_roles(self, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.voices import assign_voices

        openings = {}
        for participant in self.ids:
            opening = read_npz(self.person(participant, "face.npz"))["mouth_opening"].astype(np.float64)
            openings[participant] = np.where(self.landmarks(participant).visible, opening, np.nan)
        assignment = assign_voices(read_rttm(self.work("voices.rttm")), openings, FPS)
        write_rttm(self.work("roles.rttm"), assignment.segments)
        write_json(
            self.work("roles_found.json"),
            {
                "method": assignment.method,
                "reason": assignment.reason,
                "voice_to_participant": assignment.voice_to_participant,
                "confidence": assignment.confidence,
                "disagreement": assignment.disagreement,
                "off_screen": assignment.off_screen,
                "overlap_seconds": assignment.overlap_seconds,
                "voices_by": "rttm" if self.config.rttm is not None else self.config.diarizer,
            },
        )

    # The conversation.

    def assemble(self, segments: List[SpeechSegment]) -> Conversation:
        """What the stages left, as one conversation; nothing is written."""
        train, evaluation = split_frames(self.num_frames, self.config.eval_fraction)
        participants = []
        for participant, person in zip(self.ids, self.people, strict=True):
            head, size = self.head(participant)
            boxes = read_npz(self.work(f"{participant}_boxes.npz"))
            source = self.sources[person["source"]]
            participants.append(
                Participant(
                    id=participant,
                    name=participant,
                    camera=head.camera(head.person_origin(self.landmarks(participant).visible), *size),
                    head_box=boxes["head_box"],
                    torso_box=boxes["torso_box"],
                    motion=self.motion(participant),
                    source={
                        "file": source.path.name,
                        "crop": person["crop"],
                        "panel": person["panel"],
                        "face_box": person["face_box"],
                        "picture": [source.width, source.height],
                        "fps": source.source_fps,
                        "start_seconds": self.start / FPS,
                    },
                )
            )
        return Conversation(
            num_frames=self.num_frames,
            participants=participants,
            segments=clipped(segments, self.num_frames / FPS),
            train_frames=train,
            eval_frames=evaluation,
            fps=FPS,
            provenance={
                "program": "dialogue-nerfstudio",
                "version": dialogue_nerfstudio.__version__,
                "command": "process",
                "inputs": [path.name for path in self.paths],
                "tracker": self.tracker.provenance(),
                "expression_basis": self.basis.name,
                "expression_basis_hash": self.basis.hash,
                "options": {
                    "num_people": self.config.num_people,
                    "size": self.config.size,
                    "focal": self.config.focal,
                    "ipd": self.config.ipd,
                    "rttm": None if self.config.rttm is None else Path(self.config.rttm).name,
                    "eval_fraction": self.config.eval_fraction,
                    "masks": [Path(mask).name for mask in self.config.masks],
                },
            },
            root=self.output,
        )

    def run_report(self, conversation: Conversation, needs: Sequence[str]) -> None:
        """The last stage: report.html and quality.json."""
        self.runner.run(
            "report",
            lambda progress: self.write_report(conversation, progress),
            [self.output / REPORT_NAME, self.work("quality.json")],
            needs=needs,
            options={"segments": [[s.start, s.end, s.speaker] for s in conversation.segments]},
            version=3,
        )

    def write_report(self, conversation: Conversation, progress: Callable[[float], None]) -> None:
        from dialogue_nerfstudio.process.report import write_report

        quality = measure_quality(conversation, self.roles_found(), progress)
        write_report(conversation, quality, self.output / REPORT_NAME)
        write_json(self.work("quality.json"), quality.summary())

    def refuse_unusable(self, quality: Dict[str, Any]) -> None:
        reasons = unusable_sentences(quality["findings"])
        if reasons:
            (self.output / "conversation.json").unlink(missing_ok=True)
            raise DialogueError(
                f"{', '.join(str(path) for path in self.paths)} cannot be trained on. {reasons} "
                f"See {self.output / REPORT_NAME}; --allow-unusable writes the conversation all the same."
            )

    def finish(self, conversation: Conversation) -> Conversation:
        self.remove_strangers()
        write_json(self.output / "process.json", self.summary(conversation))
        save_conversation(conversation, self.output)
        return conversation

    def remove_strangers(self) -> None:
        """Drops what an earlier run with other people or names left under participants/."""
        for folder in (self.output / "participants").iterdir():
            if folder.is_dir() and folder.name not in self.ids:
                shutil.rmtree(folder)

    def notes(self) -> List[str]:
        """What was decided without being asked, a sentence each."""
        sound = list(self.sound_notes)
        if self.config.without_sound:
            sound += ["There is no sound: train with --pipeline.model.drive expression."]
        if self.tracker.lacks:
            sound.append(lacks_sentence(self.tracker))
        sound += self.faces_left_out()
        still = [i for i in self.ids if not read_npz(self.work(f"{i}_sway.npz"))["sway"].any()]
        if still:
            sound.append(f"The shoulders of {', '.join(still)} could not be followed: torsos follow the head alone.")
        if len(self.shots) == 1:
            return sound
        taken = 1 + [start for start, _ in self.shots].index(self.start)
        why = "as asked" if self.config.shot is not None else "the longest that shows the people"
        return [
            *sound,
            f"The video has {len(self.shots)} shots ({describe_shots(self.shots, FPS)}); shot {taken} was taken, "
            f"{why}. --shot N with another --output makes a conversation of another one, --shot all one of each.",
        ]

    def faces_left_out(self) -> List[str]:
        """Which of many faces were taken."""
        seen = max(person.get("faces_seen", 1) for person in self.people)
        if len(self.sources) > 1 or seen <= len(self.people):
            return []
        boxes = [person["face_box"] for person in self.people]
        places = ", ".join(
            f"{i} at ({(box[0] + box[2]) / 2:.0f}, {(box[1] + box[3]) / 2:.0f})"
            for i, box in zip(self.ids, boxes, strict=True)
        )
        return [f"The picture shows {seen} faces; the largest were taken: {places}. --num-people N takes others along."]

    def roles_found(self) -> Dict[str, Any]:
        """How voices were given to faces; nothing where that was no question."""
        found = self.work("roles_found.json")
        if self.config.rttm is not None and self.given_roles() is not None:
            return {"method": "rttm"}
        return read_json(found) if found.is_file() else {}

    def summary(self, conversation: Conversation) -> Dict[str, Any]:
        """The figures of process.json."""
        speaking = conversation.speaking
        participants = {}
        for column, participant in enumerate(conversation.participants):
            tracking = read_npz(self.person(participant.id, "tracking.npz"))
            head, _ = self.head(participant.id)
            visible, error = tracking["visible"], tracking["reprojection_error"]
            participants[participant.id] = {
                "crop": participant.source["crop"],
                "picture": [participant.camera.width, participant.camera.height],
                "lost_frames": int((~visible).sum()),
                "reprojection_rmse_px": float(np.sqrt(np.mean(error[visible] ** 2))),
                "rotation_jitter_degrees": head.jitter,
                "expression_fit_error_mm": float(read_npz(self.person(participant.id, "face.npz"))["fit_error_mm"]),
                "background_made_up_share": float(conversation.background_holes(participant.id).mean()),
                "blinks_per_second": blinks_per_second(participant.motion.blink, conversation.fps),
                "speaking_share": float(speaking[:, column].mean()),
            }
        return {
            "num_frames": conversation.num_frames,
            "fps": conversation.fps,
            "inputs": [path.name for path in self.paths],
            "tracker": self.tracker.provenance(),
            "participants": participants,
            "notes": self.notes(),
            "roles": self.roles_found(),
            "quality": read_json(self.work("quality.json")),
            "seconds": {**self.runner.seconds, "total": float(sum(self.runner.seconds.values()))},
            "stages_run": self.runner.ran,
        }


def recognised_voices(
    audio: Float[np.ndarray, " num_samples"], num_people: int, config: ProcessConfig
) -> List[SpeechSegment]:
    """Which voices sound when in 16 kHz sound, by the diarizer asked for.

    Raises:
        DialogueError: it is not installed, or its model cannot be had.
    """
    from dialogue_nerfstudio.process.diarization import diarize
    from dialogue_nerfstudio.process.pyannote_environment import diarize_with_pyannote

    voices = config.num_voices or num_people
    if config.diarizer == "pyannote":
        return diarize_with_pyannote(audio, SAMPLE_RATE, voices, pyannote_config(config))
    return diarize(audio, SAMPLE_RATE, voices)


def pyannote_config(config: ProcessConfig) -> "PyannoteConfig":
    from dialogue_nerfstudio.process.pyannote_environment import PyannoteConfig

    return PyannoteConfig(config.pyannote_model, config.hf_token, config.pyannote_folder)


def clipped(segments: Sequence[SpeechSegment], end: float) -> List[SpeechSegment]:
    """Segments cut to the clip's length."""
    return [SpeechSegment(s.start, min(s.end, end), s.speaker) for s in segments if s.start < end]
