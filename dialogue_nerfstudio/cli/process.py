"""`ns-dialogue process`: turn a video of people talking into a conversation that avatars can be trained on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError

SHARES = {
    "shots": 3.0,
    "people": 0.1,
    "crops": 3.0,
    "landmarks": 4.5,
    "head": 2.0,
    "expression": 1.0,
    "labels": 7.0,
    "background": 2.5,
    "sway": 5.0,
    "boxes": 0.4,
    "audio": 2.8,
    "voices": 2.0,
    "roles": 0.1,
    "tracks": 0.2,
    "report": 3.0,
}
"""How long the stages take, relative to each other, measured (two people, 1080p); only the estimate of the time left
depends on it."""

SOUND_SHARES = {"sound": 1.0, "features": 2.0, "voices": 4.0}
"""The same for sound alone."""

FOLDER_SHARES = {
    "pictures": 6.0,
    "landmarks": 30.0,
    "head": 2.0,
    "expression": 4.0,
    "boxes": 2.0,
    "audio": 2.0,
    "roles": 3.0,
    "report": 3.0,
}
"""The same for an AD-NeRF-family folder."""


TrackerName = Literal["mediapipe", "face-alignment", "landmarker"]
"""As process.trackers has them, which is not imported until it is needed."""


@dataclass
class Process:
    """Turn a video of people talking into a conversation: who speaks when, each face's pose, expression, blink and
    gaze, audio features, masks.

    One recording is one video of everybody, or one synchronous video a person; sound files beside them take the place
    of the videos' own sound, and an RTTM file says who speaks. Sound alone becomes a conversation of voices. A folder
    is the files in it. A folder prepared for AD-NeRF, RAD-NeRF, ER-NeRF, SyncTalk or TalkingGaussian
    (transforms_train.json, parsing …) becomes a conversation of one; it is only read.

    With --each or --engine, a folder is many recordings: every file in it, and every folder in it, becomes a
    conversation of its own. OUTPUT/manifest.jsonl says what became of each; the same command goes on where it was
    stopped; exit code 2 if any could not be used.

    Finished stages are kept: the same command goes on where it stopped. Figures end up in process.json, pictures and
    what to do about problems in report.html. A recording that cannot be trained on is refused (exit code 2).
    """

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO [VIDEO ...]")]
    """One video of everybody, one video a person (synchronous), sound, a folder of them, or an AD-NeRF-family folder;
    with --each as many as you like."""
    output: Optional[Path] = None
    """Folder to write; data/NAME_OF_THE_VIDEO if not given."""
    num_people: Optional[int] = None
    """How many people to expect; found automatically if not given."""
    names: tuple[str, ...] = ()
    """Their ids, from left to right or in the order of the videos; p0, p1, … if not given."""
    shot: Union[int, Literal["all"], None] = None
    """Which shot of a video with cuts to take, counted from 1, or all for a conversation of each (OUTPUT/shot-01, …);
    the longest that shows the people if not given."""
    size: Optional[int] = None
    """Height and width of each person's picture, pixels; the recording's own up to 512 if not given."""
    focal: Optional[float] = None
    """Focal length in pixels of the person's picture; twice its width if not given."""
    ipd: float = 0.063
    """Distance between the pupils, metres: what gives the scene its scale."""
    audio: tuple[Path, ...] = ()
    """Sound in place of the videos' own: one file of everybody, or one for each video."""
    without_sound: bool = False
    """Take videos without sound; expressions then drive everybody."""
    tracker: TrackerName = "mediapipe"
    """What finds the faces' landmarks: mediapipe; landmarker, which adds ARKit blendshapes and needs
    --landmarker-task; face-alignment, an optional package of 68 points, without gaze."""
    landmarker_task: Optional[Path] = None
    """MediaPipe's face_landmarker.task, for --tracker landmarker."""
    face_alignment_weights: Optional[Path] = None
    """A 2DFAN4 state dict for --tracker face-alignment; its own cache, filled by one download, if not given."""
    rttm: Optional[Path] = None
    """Who speaks when, as RTTM; found automatically if not given. Speakers named by participants' ids are taken at
    their word; under other names they are voices, given to the faces whose lips follow them."""
    audio_features: tuple[str, ...] = ("mel", "prosody")
    """What avatars can hear, to be chosen when training: mel, mfcc, prosody, wav2lip, contrastive, hubert, wav2vec2."""
    audio_weights: tuple[str, ...] = ()
    """Where their networks are, KIND=PATH each: wav2lip=wav2lip.pth, contrastive=config.yml of a run of `ns-train
    dialogue-lip-sync`, hubert=FOLDER; hubert and wav2vec2 are downloaded if not given."""
    diarizer: Literal["default", "pyannote"] = "default"
    """Who tells voices apart: this package, or pyannote.audio, once `ns-dialogue install-pyannote` has built its
    environment."""
    num_voices: Optional[int] = None
    """How many voices there are in the sound, where somebody out of the picture speaks too; one a person if not
    given."""
    pyannote_model: str = "pyannote/speaker-diarization-community-1"
    """pyannote's pipeline: a name on the Hugging Face hub, or a folder."""
    pyannote_folder: Optional[Path] = None
    """pyannote's environment, if not in the user's cache folder."""
    hf_token: Optional[str] = None
    """Token of the Hugging Face hub for a gated model; HF_TOKEN, or that of `hf auth login`, if not given."""
    eval_fraction: float = 0.1
    """Part of the video, at its end, that training does not see."""
    max_lost_seconds: float = 1.0
    """Longest time a face may be out of sight; shorter losses are bridged."""
    joint_fit: bool = False
    """Fit poses, own shape and expressions once more all together, by all landmarks (DialogueNeRF equation 1)."""
    register_head: bool = True
    """Make head poses finer by registering the pictures of the face to their mean; without it they come from landmarks
    alone."""
    register_lips: bool = True
    """Make expressions of the mouth finer by what lips look like in all frames; without it they come from landmarks
    alone."""
    face_model: Optional[Literal["shared", "bfm2009", "bfm2017", "flame", "ict"]] = None
    """In which basis expressions are measured; the shared one, or what --face-model-path is, if not given."""
    face_model_path: Optional[Path] = None
    """A face model's file or folder (BFM 2009 or 2017, FLAME, ICT-FaceKit), or what `ns-dialogue face-model` wrote."""
    face_model_landmarks: Optional[Path] = None
    """Where the face model's landmarks are: 68 vertex numbers (.txt, .json) or FLAME's published .npz; from what is
    known of the model, or its shape, if not given."""
    masks: tuple[str, ...] = ("selfie",)
    """What makes the label maps of head, neck and torso: selfie (built in); the path of MediaPipe's
    selfie_multiclass_256x256.tflite or of BiSeNet's 79999_iter.pth; or your own label videos or folders of PNGs, one a
    person, or one of the whole recording (0 background, 1 torso, 2 neck, 3 head, or AD-NeRF's colours; lossless)."""
    allow_unusable: bool = False
    """Write the conversation even if the report calls it unusable for training."""
    each: bool = False
    """Make a conversation of every file and folder in the given folders, instead of one of all files."""
    engine: Optional[Literal["local", "ray"]] = None
    """Where many recordings are worked on: local for processes of this machine, ray for Ray here or on a cluster;
    implies --each."""
    workers: Optional[int] = None
    """With --each, how many recordings at once; one for every two cores if not given."""
    ray_address: Optional[str] = None
    """With --engine ray, a running cluster: HOST:PORT, ray://HOST:PORT or auto; this machine if not given."""
    retries: int = 1
    """With --each, how often a recording whose process was killed or failed without a sentence is tried again."""
    again: bool = False
    """With --each, try those again that earlier runs refused."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.process.pipeline import ProcessConfig
        from dialogue_nerfstudio.process.recordings import one_recording, process_recording
        from dialogue_nerfstudio.process.trackers import TrackerConfig

        if not self.videos:
            raise DialogueError("Name a video to process, e.g. `ns-dialogue process chat.mp4 --output data/chat`.")
        output = self.output or Path("data") / self.videos[0].resolve().stem
        config = ProcessConfig(
            num_people=self.num_people,
            names=self.names,
            shot=self.shot,
            size=self.size,
            focal=self.focal,
            ipd=self.ipd,
            audio=self.audio,
            without_sound=self.without_sound,
            tracker=TrackerConfig(self.tracker, self.landmarker_task, self.face_alignment_weights),
            rttm=self.rttm,
            diarizer=self.diarizer,
            num_voices=self.num_voices,
            pyannote_model=self.pyannote_model,
            pyannote_folder=self.pyannote_folder,
            hf_token=self.hf_token,
            audio_features=self.audio_features,
            audio_weights=self.audio_weights,
            eval_fraction=self.eval_fraction,
            max_lost_seconds=self.max_lost_seconds,
            joint_fit=self.joint_fit,
            register_head=self.register_head,
            register_lips=self.register_lips,
            face_model=self.face_model,
            face_model_path=self.face_model_path,
            face_model_landmarks=self.face_model_landmarks,
            masks=self.masks,
            allow_unusable=self.allow_unusable,
        )
        if self.each or self.engine is not None:
            return self._run_each(output, config)
        for option, value in (("workers", self.workers), ("ray-address", self.ray_address), ("again", self.again)):
            if value:
                raise DialogueError(f"--{option} is for many recordings: add --each, or leave it out.")
        recording = one_recording(self.videos)
        shares = SHARES if recording.videos else SOUND_SHARES if recording.sounds else FOLDER_SHARES
        with StageProgress(shares) as progress:
            made = process_recording(recording, output, config, progress)
        for conversation in made:
            _print_summary(Console(), output / conversation["folder"])
        if config.shot == "all":
            _print_shots(Console(), output)
        return 0

    def _run_each(self, output: Path, config: Any) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.many import ManyProgress, print_outcome
        from dialogue_nerfstudio.process.face_mesh import require_mediapipe
        from dialogue_nerfstudio.process.manifest import MANIFEST
        from dialogue_nerfstudio.process.many import ManyConfig, process_many
        from dialogue_nerfstudio.process.recordings import find_recordings

        recordings = find_recordings(self.videos)
        if any(recording.videos for recording in recordings):
            require_mediapipe()
        many = ManyConfig(
            engine=self.engine or "local",
            workers=self.workers,
            ray_address=self.ray_address,
            retries=self.retries,
            again=self.again,
        )
        with ManyProgress() as progress:
            entries = process_many(recordings, output, config, many, progress)
        return print_outcome(Console(), entries, output, output / MANIFEST)


def _print_shots(console: Any, output: Path) -> None:
    from dialogue_nerfstudio.conversation.files import read_json
    from dialogue_nerfstudio.process.recordings import SHOTS_FILE

    for shot in read_json(output / SHOTS_FILE):
        what = f"became {output / shot['folder']}" if "folder" in shot else f"was left out. {shot['reason']}"
        span = f"{shot['start_seconds']:.1f}-{shot['end_seconds']:.1f} s"
        console.print(f"Shot {shot['shot']} ({span}) {what}", highlight=False, soft_wrap=True)


def _print_summary(console: Any, output: Path) -> None:
    from rich.table import Table

    from dialogue_nerfstudio.cli.report import print_findings
    from dialogue_nerfstudio.conversation.files import read_json
    from dialogue_nerfstudio.process.voices import voices_sentence

    summary = read_json(output / "process.json")
    if "voices" in summary:
        _print_voices(console, summary, output)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("participant", "picture", "frames lost", "reprojection (px)", "blinks/s", "speaks"):
        table.add_column(title)
    for participant_id, entry in summary["participants"].items():
        table.add_row(
            participant_id,
            "{}x{}".format(*entry["picture"]),
            f"{entry['lost_frames']} of {summary['num_frames']}",
            "–" if entry["reprojection_rmse_px"] is None else f"{entry['reprojection_rmse_px']:.2f}",
            f"{entry['blinks_per_second']:.2f}",
            f"{entry['speaking_share']:.0%}",
        )
    console.print(table)
    voices = voices_sentence(summary.get("roles", {}))
    if voices:
        console.print(voices, highlight=False, soft_wrap=True)
    for note in summary.get("notes", []):
        console.print(note, highlight=False, soft_wrap=True)
    if "quality" in summary:
        print_findings(console, summary["quality"]["findings"])
        console.print(f"Pictures and curves: {output / 'report.html'}", highlight=False, soft_wrap=True)
    console.print(
        f"{summary['num_frames']} frames in {output}, {summary['seconds']['total']:.0f} s of work. Next:\n"
        f"  ns-train dialogue-nerf --data {output}",
        highlight=False,
        soft_wrap=True,
    )


def _print_voices(console: Any, summary: dict[str, Any], output: Path) -> None:
    shares = ", ".join(f"{name} speaks {entry['speaking_share']:.0%}" for name, entry in summary["voices"].items())
    seconds = summary["num_frames"] / summary["fps"]
    console.print(f"{seconds:.1f} s of sound in {output}: {shares}.", highlight=False, soft_wrap=True)
    for note in summary["notes"]:
        console.print(note, highlight=False, soft_wrap=True)
    console.print(
        f"Next:\n  ns-dialogue render --load-config … --audio {output / 'audio.wav'} --rttm {output / 'roles.rttm'}",
        highlight=False,
        soft_wrap=True,
    )
