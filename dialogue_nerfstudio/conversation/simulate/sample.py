"""Writes a simulated conversation: an ordinary video with sound, and the true Conversation behind it.

Conventions as in `head_model.py`. The camera stands 0.85 m in front of every person; person space is recentred on the
clip's mean head position afterwards, as tracking would do, which moves the camera by the same few millimetres.
"""

import io
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Callable, List, Optional, Tuple, no_type_check

import av
import numba as nb
import numpy as np
import soundfile
from jaxtyping import Float, Float32, UInt8
from PIL import Image

from dialogue_nerfstudio.conversation.conversation import Camera, Conversation, Participant, save_conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import atomic_path, write_json, write_npz
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.simulate import surfaces
from dialogue_nerfstudio.conversation.simulate.dialogue import Dialogue, act_dialogue, speak_dialogue
from dialogue_nerfstudio.conversation.simulate.head_model import Person, PersonState, pose_person
from dialogue_nerfstudio.conversation.simulate.people import cast
from dialogue_nerfstudio.conversation.simulate.ray_marcher import render_background, render_person
from dialogue_nerfstudio.conversation.simulate.speech import SAMPLE_RATE
from dialogue_nerfstudio.conversation.split import split_frames
from dialogue_nerfstudio.conversation.video import LabelWriter, VideoWriter

FPS = 25.0
_CAMERA_POSITION = np.array([0.0, -0.035, 0.85])
_FOCAL = 2.0
_SEPARATOR = 8


@dataclass
class SimulationConfig:
    """What to simulate."""

    seconds: float = 20.0
    """Length of the conversation."""
    size: int = 256
    """Width and height of each person's panel in pixels."""
    num_people: int = 2
    """How many people talk, 1 to 4, side by side."""
    seed: int = 0
    """Draws what is said, every motion, and the third and fourth person's looks."""

    def validate(self) -> None:
        """Refuse what cannot be simulated.

        Raises:
            DialogueError: naming the option and the values it takes.
        """
        if not 1 <= self.num_people <= 4:
            raise DialogueError(f"num-people is {self.num_people}, but a simulated conversation has 1 to 4 people.")
        if not 2.0 <= self.seconds <= 3600.0:
            raise DialogueError(f"seconds is {self.seconds:g}, but a simulated conversation lasts 2 to 3600 seconds.")
        if self.size < 64 or self.size > 2048 or self.size % 2:
            raise DialogueError(f"size is {self.size}, but a panel has an even size from 64 to 2048 pixels.")

    @property
    def num_frames(self) -> int:
        return round(self.seconds * FPS)


@dataclass
class SimulatedPerson:
    """One person of a simulation: looks, true motion and camera, ready to be rendered in any frame, from any side."""

    person: Person
    motion: Motion
    torso_pose: Float[np.ndarray, "num_frames 6"]
    camera: Camera

    def state(self, frame: int) -> PersonState:
        """Everything that moves, at a frame."""
        return PersonState(
            self.motion.head_pose[frame],
            self.motion.expression[frame],
            self.motion.blink[frame],
            self.motion.gaze[frame],
            self.torso_pose[frame],
        )

    def render(
        self, frame: int, camera: Optional[Camera] = None
    ) -> Tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
        """Image, labels and depth of a frame, from the recording camera or another one in this person's space."""
        return render_person(self.person, self.state(frame), camera or self.camera)


def simulate_people(config: SimulationConfig) -> Tuple[List[SimulatedPerson], Dialogue]:
    """Everybody's true motion and what is said, without rendering anything."""
    config.validate()
    dialogue = act_dialogue(config.num_people, config.num_frames, FPS, config.seed)
    people = []
    for person, performance in zip(cast(config.num_people, config.seed), dialogue.performances, strict=True):
        centre = performance.head_pose[:, 3:].mean(axis=0)
        head_pose, torso_pose = performance.head_pose.copy(), performance.torso_pose.copy()
        head_pose[:, 3:] -= centre
        torso_pose[:, 3:] -= centre
        size = config.size
        camera = Camera(
            size,
            size,
            _FOCAL * size,
            size / 2,
            size / 2,
            np.concatenate([np.eye(3), (_CAMERA_POSITION - centre)[:, None]], axis=1),
        )
        motion = Motion(
            head_pose=head_pose.astype(np.float32),
            expression=performance.expression.astype(np.float32),
            blink=performance.blink.astype(np.float32),
            gaze=performance.gaze.astype(np.float32),
            expression_residual=np.zeros((config.num_frames, 0), np.float32),
            fps=FPS,
            sources={name: "simulated" for name in ("head_pose", "expression", "blink", "gaze")},
        )
        people.append(SimulatedPerson(person, motion, torso_pose.astype(np.float32), camera))
    return people, dialogue


@nb.njit(cache=True)
@no_type_check
def _inside_box(xs, ys, zs, rigs):
    rig = rigs[0]
    low, high = np.full(3, 9.0), np.full(3, -9.0)
    for x in xs:
        for y in ys:
            for z in zs:
                if surfaces.head(x, y, z, rig) < 0.0:
                    point = (x, y, z)
                    for k in range(3):
                        low[k] = min(low[k], point[k])
                        high[k] = max(high[k], point[k])
    return low, high


def head_box(person: Person) -> Float[np.ndarray, "2 3"]:
    """Box in head space that holds a person's head with the mouth open, measured on its surface, with a centimetre to
    spare."""
    state = PersonState()
    state.expression[0] = 1.0
    axis = np.arange(-0.2, 0.2001, 0.005)
    low, high = _inside_box(axis, axis, axis, pose_person(person, state).rig)
    return np.stack([low - 0.01, high + 0.01])


def torso_box(camera: Camera) -> Float[np.ndarray, "2 3"]:
    """Box in person space of the neck and the part of the torso that the camera sees."""
    position = camera.camera_to_person[:, 3]
    half_height = 0.5 * camera.height / camera.focal * (position[2] + 0.2)
    return np.array([[-0.30, position[1] - half_height - 0.02, -0.20], [0.30, -0.03, 0.16]])


class _SoundVideoWriter:
    """An mp4 with H.264 pictures and AAC sound, written as the frames come; it appears when complete."""

    def __init__(
        self, path: Path, width: int, height: int, audio: Float32[np.ndarray, " num_samples"], crf: int = 12
    ) -> None:
        self._atomic = atomic_path(path)
        self._size = (width, height)
        self._audio, self._crf = audio, crf
        self._sent = 0
        self._frames = 0

    def __enter__(self) -> "_SoundVideoWriter":
        self._container = av.open(str(self._atomic.__enter__()), "w", options={"movflags": "+faststart"})
        self._video = self._container.add_stream(
            "libx264", rate=int(FPS), options={"crf": str(self._crf), "preset": "medium"}
        )
        self._video.width, self._video.height = self._size
        self._video.pix_fmt = "yuv420p"
        self._sound = self._container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        self._sound.bit_rate = 96000
        return self

    def write(self, frame: UInt8[np.ndarray, "h w 3"]) -> None:
        """Append a picture and the sound that belongs to it."""
        self._container.mux(self._video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        self._frames += 1
        self._write_sound(round(self._frames / FPS * SAMPLE_RATE))

    def _write_sound(self, stop: int) -> None:
        block = self._audio[self._sent : stop]
        if not len(block):
            return
        sound = av.AudioFrame.from_ndarray(np.ascontiguousarray(block[None], np.float32), format="fltp", layout="mono")
        sound.sample_rate, sound.pts, sound.time_base = SAMPLE_RATE, self._sent, Fraction(1, SAMPLE_RATE)
        self._container.mux(self._sound.encode(sound))
        self._sent = stop

    def __exit__(self, kind, error, trace) -> None:
        try:
            if kind is None:
                self._container.mux(self._video.encode())
                self._container.mux(self._sound.encode())
            self._container.close()
        except BaseException as failure:
            self._atomic.__exit__(type(failure), failure, failure.__traceback__)
            raise
        self._atomic.__exit__(kind, error, trace)


def _write_wav(path: Path, audio: Float32[np.ndarray, " num_samples"]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = io.BytesIO()
    soundfile.write(encoded, audio, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    with atomic_path(path) as temporary:
        # Not by soundfile, whose errors do not say that the disk is full.
        temporary.write_bytes(encoded.getvalue())


def _write_truth_extras(
    root: Path, config: SimulationConfig, people: List[SimulatedPerson], dialogue: Dialogue
) -> None:
    """What a recording could never tell: sway, phones, blinks and what answers what."""
    for index, simulated in enumerate(people):
        phones = [
            (turn.start + p.start, turn.start + p.end, p.name)
            for turn in dialogue.turns
            if turn.participant == index
            for p in turn.utterance.phones
        ]
        write_npz(
            root / "participants" / f"p{index}" / "simulation.npz",
            torso_pose=simulated.torso_pose,
            blinks=np.array(dialogue.performances[index].blinks, np.float64).reshape(-1, 2),
            phone_spans=np.array([span[:2] for span in phones], np.float64).reshape(-1, 2),
            phone_names=np.array([span[2] for span in phones], "U4"),
        )
    responses = [
        dict(participant=f"p{r.participant}", kind=r.kind, time=r.time, cause=r.cause) for r in dialogue.responses
    ]
    turns = [
        dict(participant=f"p{t.participant}", start=t.start, end=t.end, backchannel=t.is_backchannel)
        for t in dialogue.turns
    ]
    write_json(root / "simulation.json", {"config": asdict(config), "turns": turns, "responses": responses})


def simulate_conversation(
    config: SimulationConfig, output: Path, progress: Optional[Callable[[int, int], None]] = None
) -> Path:
    """Simulate a conversation and write it.

    Writes `output/video.mp4` (everybody side by side, left to right in the order of their ids p0, p1 …, with sound)
    and `output/truth`, a Conversation folder with the true motions, roles, labels, plates and cameras, completed by
    `simulation.json` and each person's `simulation.npz` (torso sway, phones, blinks, responses). One frame is in
    memory at a time.

    Args:
        config: What to simulate; equal configs give equal truth.
        output: Folder to write into.
        progress: Called with (frames done, frames in all).

    Returns:
        The path of the video.

    Raises:
        DialogueError: for an option out of range or a full disk.
    """
    people, dialogue = simulate_people(config)
    output, truth = Path(output), Path(output) / "truth"
    # A folder is whole once conversation.json is there: an old one must not vouch for new files.
    (truth / "conversation.json").unlink(missing_ok=True)
    size, count = config.size, config.num_people
    num_samples = round(config.num_frames / FPS * SAMPLE_RATE)
    tracks, mix = speak_dialogue(dialogue, num_samples, config.seed)
    _write_wav(truth / "audio.wav", mix)
    for index in range(count):
        _write_wav(truth / "audio" / f"p{index}.wav", tracks[index])

    folders = [truth / "participants" / f"p{index}" for index in range(count)]
    for folder, simulated in zip(folders, people, strict=True):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / "background.png") as temporary:
            Image.fromarray(render_background(simulated.person, simulated.camera)).save(temporary)
    _render_all(config, people, mix, output / "video.mp4", folders, progress)
    _write_truth_extras(truth, config, people, dialogue)

    train, evaluate = split_frames(config.num_frames)
    participants = [
        Participant(
            id=f"p{index}",
            name=simulated.person.name,
            camera=simulated.camera,
            head_box=head_box(simulated.person),
            torso_box=torso_box(simulated.camera),
            motion=simulated.motion,
            source={"video": "video.mp4", "crop": [index * (size + _SEPARATOR), 0, size, size]},
        )
        for index, simulated in enumerate(people)
    ]
    save_conversation(
        Conversation(
            fps=FPS,
            num_frames=config.num_frames,
            participants=participants,
            segments=dialogue.segments,
            train_frames=train,
            eval_frames=evaluate,
            provenance={"made_by": "dialogue-nerfstudio simulation", "synthetic": True, "config": asdict(config)},
        ),
        truth,
    )
    return output / "video.mp4"


def _render_all(
    config: SimulationConfig,
    people: List[SimulatedPerson],
    audio: Float32[np.ndarray, " num_samples"],
    video: Path,
    folders: List[Path],
    progress: Optional[Callable[[int, int], None]],
) -> None:
    """Render every frame of everybody once, into the shared video, the crops and the label maps."""
    size = config.size
    width = len(people) * (size + _SEPARATOR) - _SEPARATOR
    with ExitStack() as stack:
        shared = stack.enter_context(_SoundVideoWriter(video, width, size, audio))
        crops = [stack.enter_context(VideoWriter(folder / "video.mp4", FPS, size, size, crf=8)) for folder in folders]
        labels = [stack.enter_context(LabelWriter(folder / "labels.mkv", FPS, size, size)) for folder in folders]
        for frame in range(config.num_frames):
            canvas = np.zeros((size, width, 3), np.uint8)
            for index, simulated in enumerate(people):
                image, label_map, _ = simulated.render(frame)
                canvas[:, index * (size + _SEPARATOR) : index * (size + _SEPARATOR) + size] = image
                crops[index].write(image)
                labels[index].write(label_map)
            shared.write(canvas)
            if progress is not None:
                progress(frame + 1, config.num_frames)
