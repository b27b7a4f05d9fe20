"""`ns-dialogue render`: a trained checkpoint becomes a conversation video with sound, driven by what the user names."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

from dialogue_nerfstudio.conversation.errors import DialogueError

if TYPE_CHECKING:
    import numpy as np
    from nerfstudio.cameras.cameras import Cameras
    from nerfstudio.engine.trainer import TrainerConfig

    from dialogue_nerfstudio.conversation.conversation import Camera, Conversation
    from dialogue_nerfstudio.nerf.model import DialogueModel
    from dialogue_nerfstudio.nerf.scene import Scene
    from dialogue_nerfstudio.nerf.scene_cameras import View
    from dialogue_nerfstudio.output.driving import Driving

CAMERAS = ("front", "over-shoulder", "orbit")
"""Cameras of a co-located scene that need no file."""
SCENE_ASPECT = 16 / 9
"""Width / height of a co-located scene's pictures, where no camera path says otherwise."""


@dataclass
class Render:
    """Render a conversation video, with sound, from a trained checkpoint.

    Without more options the avatars do what they did in the recording. --motion makes them move as somebody else did,
    --audio makes one of them say something new. Figures end up beside the video, as OUTPUT.json.
    """

    load_config: Path
    """config.yml that ns-train wrote."""
    output: Path = Path("render.mp4")
    """Video to write, .mp4."""
    motion: Optional[Path] = None
    """Conversation folder, folder of motions, or motion file whose movements the avatars take over."""
    motion_map: tuple[str, ...] = ()
    """Who takes whose motion, AVATAR=OTHER each; by equal ids, else in order, if not given."""
    audio: Optional[Path] = None
    """New sound: what the speaker says in the video."""
    speaker: Optional[str] = None
    """Participant who speaks in --audio, throughout."""
    rttm: Optional[Path] = None
    """Who speaks when in --audio, as RTTM with the participants' ids as speakers."""
    audio_weights: Optional[str] = None
    """Where the network is that hears --audio for avatars trained with wav2lip, contrastive, hubert or wav2vec2; where
    it was when the feature was made if not given."""
    drive: Optional[Literal["role", "audio", "expression"]] = None
    """What moves the faces: by role (audio for who speaks, expression for who listens), audio, or expression; as
    trained if not given."""
    participants: tuple[str, ...] = ()
    """Who is in the picture, from left to right; everybody if not given."""
    frames: Optional[str] = None
    """Frames to render, START:STOP; all if not given."""
    split: Literal["all", "train", "eval"] = "all"
    """Frames of the recording to render: all, or one side of the train/eval split."""
    resolution: Optional[int] = None
    """Height of each person's picture, or of the scene's, pixels; as trained (or as a camera path says) if not
    given."""
    layout: Literal["side-by-side", "grid", "co-located"] = "side-by-side"
    """Each person before their own recorded background, in a row or in a grid, or everybody together in one scene."""
    camera: Optional[str] = None
    """For --layout co-located: front, over-shoulder (from the first participant's to the second's face), orbit, or the
    JSON file of a camera path from nerfstudio's viewer; front if not given."""
    placement: Optional[str] = None
    """For --layout co-located: arc (half facing each other, half the viewer), side-by-side, facing, around, or a JSON
    or YAML file with position and yaw of each; as the model's configuration says if not given, and facing for
    over-shoulder."""
    spacing: Optional[float] = None
    """For --layout co-located: metres between neighbours' heads; as near as looks natural if not given."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.files import write_json

        self._check_options()
        with StageProgress() as progress:
            summary = render_video(self, progress)
        write_json(self.output.with_suffix(".json"), summary)
        Console().print(
            f"{self.output}: {summary['frames']} frames, {summary['seconds']:.2f} s, {summary['width']}x"
            f"{summary['height']}, rendered at {summary['frames_per_second_rendered']:.1f} frames/s",
            highlight=False,
        )
        return 0

    def _check_options(self) -> None:
        """What can be refused before anything slow is loaded."""
        if self.output.suffix.lower() != ".mp4":
            raise DialogueError(f"--output {self.output}: the video must be an .mp4 file; change its name.")
        if self.audio is None and (self.speaker is not None or self.rttm is not None):
            raise DialogueError("--speaker and --rttm say who speaks in new sound: add --audio, or leave them out.")
        if self.motion is None and self.motion_map:
            raise DialogueError("--motion-map says who takes whose motion: add --motion, or leave it out.")
        if self.split != "all" and (self.motion is not None or self.audio is not None):
            raise DialogueError(
                f"--split {self.split} is part of the recording: use --frames with --motion or --audio."
            )
        if self.resolution is not None and self.resolution < 2:
            raise DialogueError(f"--resolution {self.resolution}: at least 2 pixels are needed.")
        if self.layout != "co-located":
            for option, value in (("--camera", self.camera), ("--placement", self.placement)):
                if value is not None:
                    raise DialogueError(
                        f"{option} {value} is for people in one scene: add --layout co-located, or leave it out."
                    )
            if self.spacing is not None:
                raise DialogueError("--spacing is for people in one scene: add --layout co-located, or leave it out.")
        elif self.camera not in (None, *CAMERAS) and not str(self.camera).lower().endswith(".json"):
            raise DialogueError(
                f"--camera {self.camera}: there is no such camera; choose {', '.join(CAMERAS)}, or the .json file of a "
                "camera path."
            )
        if self.spacing is not None and not 0 < self.spacing < 100:
            raise DialogueError(f"--spacing {self.spacing:g}: the distance between people is in metres, above 0.")
        for path, option in ((self.load_config, "--load-config"), (self.audio, "--audio"), (self.rttm, "--rttm")):
            if path is not None and not path.is_file():
                raise DialogueError(f"{option} {path}: there is no such file.")


def training_conversation(config: "TrainerConfig") -> "Conversation":
    """The conversation a run was trained on, with the split that it was trained with.

    Raises:
        DialogueError: if it is not there any more, or damaged.
    """
    datamanager = config.pipeline.datamanager
    if datamanager.data is not None:
        datamanager.dataparser.data = Path(datamanager.data)
    return datamanager.dataparser.setup().conversation


def choose_driving(conversation: "Conversation", options: Render, audio_feature: str = "mel") -> "Driving":
    """What the options say drives the avatars.

    Raises:
        DialogueError: if a motion, sound or RTTM file cannot be used; it is named.
    """
    from dialogue_nerfstudio.output.driving import (
        Hearing,
        choose_frames,
        drive_by_audio,
        drive_by_motion,
        drive_by_recording,
        load_other_motion,
    )

    hearing = Hearing(audio_feature, options.audio_weights)
    driving = None
    if options.motion is not None:
        driving = drive_by_motion(conversation, load_other_motion(options.motion), options.motion_map, hearing)
    if options.audio is not None:
        driving = drive_by_audio(conversation, options.audio, options.speaker, options.rttm, driving, hearing)
    if driving is None:
        driving = drive_by_recording(conversation, hearing)
    split = (conversation.train_frames, conversation.eval_frames)
    return driving.take(choose_frames(driving.num_frames, options.frames, options.split, *split))


def render_video(options: Render, progress: Any) -> dict[str, Any]:
    """Load, drive, render and write; the summary that goes beside the video.

    Raises:
        DialogueError: if the checkpoint, a participant or what drives them cannot be used, or the disk is full.
    """
    from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering, read_config
    from dialogue_nerfstudio.output.video import write_conversation_video

    progress("load", 0, 1)
    # The checkpoint is slow to load, so what is asked of it is checked first.
    trained = read_config(options.load_config)
    conversation = training_conversation(trained)
    participants = list(options.participants) or conversation.participant_ids
    for participant_id in participants:
        conversation.participant(participant_id)
    audio_feature = trained.pipeline.datamanager.dataparser.audio_feature
    driving = choose_driving(conversation, options, audio_feature)
    config, pipeline = load_pipeline_for_rendering(options.load_config)
    progress("load", 1, 1)

    start = time.perf_counter()
    # Names, not paths: a video is passed on, and where its maker keeps things is nobody's business.
    provenance = {
        "method": config.method_name,
        "run": config.get_base_dir().name,
        "checkpoint_step": config.load_step,
        "participants": participants,
        "recordings": list(conversation.provenance.get("inputs", [])),
        "sources": [Path(source).name for source in driving.sources],
        "layout": options.layout,
    }
    if options.layout == "co-located":
        shot = prepare_scene(pipeline, participants, driving, options)
        provenance["camera"] = shot.camera
        provenance["placements"] = shot.scene.statement()
        frames = render_scene_frames(pipeline, driving, shot, options, progress)
    else:
        frames = render_frames(pipeline, conversation, driving, participants, options, progress)
    summary = write_conversation_video(
        options.output,
        frames,
        driving.fps,
        driving.audio,
        driving.sample_rate,
        provenance,
    )
    elapsed = time.perf_counter() - start
    return {
        "output": str(options.output),
        "frames": summary.num_frames,
        "fps": summary.fps,
        "seconds": summary.seconds,
        "audio_seconds": summary.audio_seconds,
        "width": summary.width,
        "height": summary.height,
        "render_seconds": elapsed,
        "frames_per_second_rendered": summary.num_frames / elapsed,
        "config": str(options.load_config),
        "sources": driving.sources,
        "provenance": provenance,
    }


def render_frames(
    pipeline: Any,
    conversation: "Conversation",
    driving: "Driving",
    participants: list[str],
    options: Render,
    progress: Any,
) -> "Iterator[np.ndarray]":
    """The frames of a render, uint8 [H, W, 3], one at a time, participants side by side or in a grid."""
    from dialogue_nerfstudio.cli.training import to_picture
    from dialogue_nerfstudio.output.layout import grid, side_by_side

    model = drive_model(pipeline, driving)
    arrange = grid if options.layout == "grid" else side_by_side
    people = [(model.participant_ids.index(name), conversation.participant(name).camera) for name in participants]
    height = options.resolution or pipeline.datamanager.dataparser.training_size(people[0][1])[0]
    cameras = [(row, nerfstudio_camera(camera, height).to(model.device)) for row, camera in people]
    for frame in range(driving.num_frames):
        pictures = [model.render_frame(camera, frame, row, options.drive)["rgb"] for row, camera in cameras]
        yield arrange([to_picture(picture) for picture in pictures])
        progress("render", frame + 1, driving.num_frames)


def drive_model(pipeline: Any, driving: "Driving") -> "DialogueModel":
    """The pipeline's model, ready to render what drives it."""
    model = pipeline.model
    model.eval()
    model.set_signals(model.signals.with_motion(driving.motions).with_audio(driving.features, driving.speaking))
    return model


@dataclass
class Shot:
    """A co-located scene and the views it is seen from."""

    scene: "Scene"
    views: "list[View]"
    """One a frame of the video."""
    height: int
    width: int
    camera: str
    """Its name, for the record."""


def prepare_scene(pipeline: Any, participants: list[str], driving: "Driving", options: Render) -> Shot:
    """Who is where, and the camera of every frame.

    Raises:
        DialogueError: people overlap, or the camera or a placement file cannot be used.
    """
    from dialogue_nerfstudio.nerf import scene_cameras

    model = pipeline.model
    kind = options.camera or "front"
    path = None if kind in CAMERAS else scene_cameras.read_camera_path(Path(kind))
    # Over a shoulder only somebody who turns that way shows a face.
    placement = options.placement or ("facing" if kind == "over-shoulder" and len(participants) == 2 else None)
    scene = model.make_scene(placement, participants, spacing=options.spacing)
    if path is not None:
        height = options.resolution or path.height
        width = round(height * path.width / path.height)
        views = path.at(driving.num_frames, driving.fps)
        return Shot(scene, views, height, width, Path(kind).name)
    camera = model.cameras[scene.rows[0]]
    height = options.resolution or pipeline.datamanager.dataparser.training_size(camera)[0]
    width = max(2, 2 * round(height * SCENE_ASPECT / 2))
    aspect = width / height
    if kind == "orbit":
        ranges = [model.view_range(row) for row in scene.rows]
        swing = scene_cameras.widest_swing(scene, aspect, ranges)
        views = scene_cameras.orbit(scene, aspect, driving.num_frames, driving.fps, swing)
    else:
        view = scene_cameras.over_shoulder(scene) if kind == "over-shoulder" else scene_cameras.front(scene, aspect)
        views = [view] * driving.num_frames
    return Shot(scene, views, height, width, kind)


def render_scene_frames(
    pipeline: Any, driving: "Driving", shot: Shot, options: Render, progress: Any
) -> "Iterator[np.ndarray]":
    """The frames of a co-located render, uint8 [H, W, 3], one at a time."""
    from dialogue_nerfstudio.cli.training import to_picture

    model = drive_model(pipeline, driving)
    for frame, view in enumerate(shot.views):
        camera = view.camera(shot.height, shot.width).to(model.device)
        yield to_picture(model.render_scene(camera, frame, shot.scene, options.drive)["rgb"])
        progress("render", frame + 1, driving.num_frames)


def nerfstudio_camera(camera: "Camera", height: int) -> "Cameras":
    """The camera that recorded a participant, as nerfstudio's, for pictures of `height` rows."""
    import torch
    from nerfstudio.cameras.cameras import Cameras

    scale = height / camera.height
    width = max(1, round(camera.width * scale))
    return Cameras(
        camera_to_worlds=torch.tensor(camera.camera_to_person, dtype=torch.float32)[None],
        fx=camera.focal * width / camera.width,
        fy=camera.focal * scale,
        cx=camera.cx * width / camera.width,
        cy=camera.cy * scale,
        width=width,
        height=height,
    )
