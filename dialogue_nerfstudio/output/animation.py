"""A conversation animated from a sound file: a folder of sound, roles and everybody's motion, made in stages.

    sound     the file decoded to the mix, and to a file each where two channels are two people
    roles     who speaks when
    motion    everybody's motion, generated while the sound is read

The folder holds audio.wav, roles.rttm, participants/<id>/motion.npz and, last, animation.json: what made it, of what,
that it is synthetic, and figures. A finished stage is not run again. Memory does not grow with the sound, but for the
roles, a byte a frame and person.
"""

import contextlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Sequence

import numpy as np
import soundfile
from jaxtyping import Bool

from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE, Conversation
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import (
    atomic_path,
    read_json,
    read_npz,
    remove_temporaries,
    write_json,
    write_npz,
)
from dialogue_nerfstudio.conversation.motion import Motion
from dialogue_nerfstudio.conversation.roles import SpeechSegment, read_rttm, segments_to_frames, write_rttm
from dialogue_nerfstudio.conversation.threads import one_thread
from dialogue_nerfstudio.motion.animation import MOTION_FPS, Animation, NamedGenerator
from dialogue_nerfstudio.motion.generator import Character
from dialogue_nerfstudio.output.driving import ANIMATION_FILE, ANIMATION_WORK, resample_motion
from dialogue_nerfstudio.output.motion_writer import MotionWriter
from dialogue_nerfstudio.output.video import synthetic_statement
from dialogue_nerfstudio.process.audio_features import sound_blocks, sound_channels
from dialogue_nerfstudio.process.motion_signals import HeardConversation
from dialogue_nerfstudio.process.sound_roles import (
    one_person_a_channel,
    roles_by_channel,
    roles_by_name,
    roles_by_rttm,
    roles_by_voice,
)
from dialogue_nerfstudio.process.sound_source import SoundFile
from dialogue_nerfstudio.process.stages import Progress, StageRunner, source_fingerprint

FIRST_BLOCK, BLOCK_FRAMES = 50, 250
"""Frames of the first block of sound that generators hear, short so that it soon moves, and of every later one."""

MotionBlocks = Iterator[Dict[str, Motion]]
"""Everybody's motion, some frames at a time."""


@dataclass
class AnimationOptions:
    """What may be said about a sound and its animation."""

    speaker: Optional[str] = None
    """Who speaks, throughout."""
    rttm: Optional[Path] = None
    """Who speaks when."""
    channels: Literal["auto", "mix", "person-each"] = "auto"
    """Whether two channels are two people."""
    num_voices: Optional[int] = None
    """Voices to tell apart; as many as people if None."""
    seed: int = 0
    """Of everything drawn."""


@dataclass
class AnimationModel:
    """A generator with what is on record about it."""

    named: NamedGenerator
    record: Dict[str, Any] = field(default_factory=dict)
    """Method, run, step … (JSON-serialisable)."""
    fingerprint: List[Any] = field(default_factory=list)
    """Tells one checkpoint from another."""


def recorded_characters(conversation: Conversation, ids: Sequence[str] = ()) -> List[Character]:
    """The people of a conversation as generators know them: what training saw of them, at the generators' rate.

    Args:
        conversation: recorded.
        ids: who, in this order; everybody if empty.

    Raises:
        DialogueError: there is no such person, or one was never seen.
    """
    characters = []
    for name in ids or conversation.participant_ids:
        participant = conversation.participant(name)
        if participant.motion is None:
            raise DialogueError(
                f"{conversation.root}: of {name} there is only the voice, and no motion to learn habits from."
            )
        frames = conversation.train_frames
        column = conversation.participant_ids.index(name)
        motion = resample_motion(participant.motion.take(frames), MOTION_FPS)
        rows = (np.arange(motion.num_frames) + 0.5) / MOTION_FPS * conversation.fps
        rows = np.minimum(rows.astype(int), len(frames) - 1)
        characters.append(Character(name, motion, conversation.speaking[frames, column][rows]))
    return characters


class SoundAnimation:
    """One run of the stages.

    Args:
        audio: any media file with sound.
        output: the folder to make; where an earlier run was interrupted, it goes on.
        characters: who is animated, in the order of voices, channels and columns.
        models: generators; of the same field of a Motion the last one's counts.
        people: where the characters come from, for the record.
        options: see there.
        progress: called as progress(stage, done, total).

    Raises:
        DialogueError: naming the file or option, and the way out.
    """

    def __init__(
        self,
        audio: Path,
        output: Path,
        characters: Sequence[Character],
        models: Sequence[AnimationModel],
        people: str,
        options: Optional[AnimationOptions] = None,
        progress: Optional[Progress] = None,
    ):
        self.audio, self.output = Path(audio), Path(output)
        self.characters, self.models, self.people = list(characters), list(models), people
        self.options, self.progress = options or AnimationOptions(), progress
        self.ids = [character.id for character in self.characters]
        self._work = self.output / ANIMATION_WORK
        self._check()
        # Who cannot be moved is refused before hours of sound are heard.
        self._begin()
        sources = [self.audio, *([self.options.rttm] if self.options.rttm else [])]
        self._runner = StageRunner(
            self.output, self._work, source_fingerprint(sources), progress, result=ANIMATION_FILE
        )
        self._started = time.perf_counter()

    def _check(self) -> None:
        options = self.options
        if not self.audio.is_file():
            raise DialogueError(f"--audio {self.audio}: there is no such file.")
        if options.speaker is not None and options.rttm is not None:
            raise DialogueError("Give --speaker or --rttm, not both: they both say who speaks.")
        if options.rttm is not None and not options.rttm.is_file():
            raise DialogueError(f"--rttm {options.rttm}: there is no such file.")
        if options.speaker is not None and options.speaker not in self.ids:
            raise DialogueError(
                f"--speaker {options.speaker}: there is no such person; there is {', '.join(self.ids)}."
            )
        if options.num_voices is not None and options.num_voices < 1:
            raise DialogueError(f"--num-voices {options.num_voices}: there is at least one.")
        if options.channels == "person-each" and len(self.ids) != 2:
            raise DialogueError(f"--channels person-each is for two people, and there are {len(self.ids)}.")
        if (self.output / "conversation.json").is_file():
            raise DialogueError(f"--output {self.output} is a conversation; give another folder, it would be mixed up.")
        strangers = self.output.is_dir() and any(self.output.iterdir()) and not self._work.is_dir()
        if strangers and not (self.output / ANIMATION_FILE).is_file():
            raise DialogueError(f"--output {self.output} holds other files; give a new folder.")

    def _begin(self) -> Animation:
        return Animation([model.named for model in self.models], self.characters, self.options.seed)

    # Stages -----------------------------------------------------------------------------------------------------------

    def run(self, consume: Optional[Callable[[MotionBlocks], None]] = None) -> Dict[str, Any]:
        """Runs what is not finished; what animation.json says.

        Args:
            consume: is given the motion as it is generated, and takes all of it.
        """
        if self._work.is_dir():
            remove_temporaries(self.output)
        self.prepare()
        outputs = [self._motion_path(name) for name in self.ids] + [self._work / "motion_facts.json"]
        options = {
            "ids": self.ids,
            "seed": self.options.seed,
            "people": [_fingerprint(character) for character in self.characters],
            "models": [[model.named.name, model.fingerprint] for model in self.models],
        }
        consumed = False

        def generate(progress: Callable[[float], None]) -> None:
            nonlocal consumed
            consumed = True
            blocks = self._generated(progress)
            if consume is not None:
                consume(blocks)
            # Whatever is left, and the files.
            for _ in blocks:
                pass

        self._runner.run("motion", generate, outputs, ["roles"], options)
        if consume is not None and not consumed:
            consume(self._recorded())
        return self._finish()

    def prepare(self) -> HeardConversation:
        """The stages before the motion: the sound and who speaks in it."""
        sound = [self.output / "audio.wav", self._work / "sound_facts.json"]
        self._runner.run(
            "sound", self._write_sound, sound, options={"ids": self.ids, "channels": self.options.channels}
        )
        said = {
            "speaker": self.options.speaker,
            "rttm": str(self.options.rttm),
            "num_voices": self.options.num_voices,
        }
        roles = [self.output / "roles.rttm", self._work / "role_facts.json"]
        self._runner.run("roles", self._write_roles, roles, ["sound"], said, version=2)
        return self.heard

    @property
    def num_frames(self) -> int:
        """Known once the sound is decoded."""
        return int(read_json(self._work / "sound_facts.json")["num_frames"])

    @property
    def heard(self) -> HeardConversation:
        """The sound and the roles."""
        num_frames = self.num_frames
        length = round(num_frames / MOTION_FPS * SAMPLE_RATE)
        own = None
        if self._separated:
            own = [SoundFile(self._own_path(name), length) for name in self.ids]
        return HeardConversation(
            SoundFile(self.output / "audio.wav", length), tuple(self.ids), self.speaking, own, MOTION_FPS
        )

    @property
    def speaking(self) -> Bool[np.ndarray, "T P"]:
        segments = read_rttm(self.output / "roles.rttm")
        return segments_to_frames(segments, self.ids, self.num_frames, MOTION_FPS)

    @property
    def _separated(self) -> bool:
        return bool(read_json(self._work / "sound_facts.json")["separated"])

    def _own_path(self, name: str) -> Path:
        return self.output / "audio" / f"{name}.wav"

    def _motion_path(self, name: str) -> Path:
        return self.output / "participants" / name / "motion.npz"

    def _write_sound(self, progress: Callable[[float], None]) -> None:
        two = sound_channels(self.audio) == 2 and len(self.ids) == 2 and self.options.channels != "mix"
        if self.options.channels == "person-each" and not two:
            raise DialogueError(f"--channels person-each: {self.audio} does not have two channels; leave it out.")
        paths = [self.output / "audio.wav", *([self._own_path(name) for name in self.ids] if two else [])]
        levels: List[np.ndarray] = []
        rest = np.zeros((2 if two else 1, 0), np.float32)
        frame, total = round(SAMPLE_RATE / MOTION_FPS), 0
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(soundfile.SoundFile(stack.enter_context(atomic_path(path)), "w", SAMPLE_RATE, 1))
                for path in paths
            ]
            for block in sound_blocks(self.audio, channels=2 if two else 1):
                total += block.shape[1]
                # As `load_audio` mixes two channels: at equal power.
                mix = block.sum(axis=0) * np.float32(0.5**0.5) if two else block[0]
                for file, track in zip(files, [mix, *(block if two else [])], strict=True):
                    file.write(np.clip(track, -1.0, 1.0))
                rest = np.concatenate([rest, block], axis=1) if two else rest
                whole = rest.shape[1] // frame * frame
                if whole:
                    squares = np.square(rest[:, :whole], dtype=np.float64).reshape(2, -1, frame).mean(axis=2)
                    levels.append(np.sqrt(squares).T)
                    rest = rest[:, whole:]
            if total < frame:
                raise DialogueError(
                    f"{self.audio} is shorter than one frame ({1 / MOTION_FPS:g} s); give a longer sound."
                )
        heard = np.concatenate(levels) if levels else np.zeros((0, 2))
        separated = two and (self.options.channels == "person-each" or one_person_a_channel(heard))
        if two and not separated:
            for name in self.ids:
                self._own_path(name).unlink()
            self._own_path(self.ids[0]).parent.rmdir()
        if separated:
            write_npz(self._work / "levels.npz", levels=heard.astype(np.float32))
        write_json(self._work / "sound_facts.json", {"num_frames": total // frame, "separated": separated})

    def _write_roles(self, progress: Callable[[float], None]) -> None:
        seconds = self.num_frames / MOTION_FPS
        if self.options.rttm is not None:
            roles = roles_by_rttm(self.options.rttm, self.ids)
        elif self.options.speaker is not None:
            roles = roles_by_name(self.options.speaker, self.ids, seconds)
        elif self._separated:
            channels = [SoundFile(self._own_path(name)) for name in self.ids]
            roles = roles_by_channel(
                channels, read_npz(self._work / "levels.npz")["levels"], self.ids, MOTION_FPS, progress
            )
        else:
            mix = SoundFile(self.output / "audio.wav")
            roles = roles_by_voice(mix, self.ids, self.options.num_voices, progress)
        kept = [
            SpeechSegment(segment.start, min(segment.end, seconds), segment.speaker)
            for segment in roles.segments
            if segment.start < seconds
        ]
        late = len(roles.segments) - len(kept)
        if late:
            roles.notes.append(f"{late} segment(s) of {self.options.rttm} lie after the sound's end ({seconds:.1f} s).")
        write_rttm(self.output / "roles.rttm", kept)
        write_json(self._work / "role_facts.json", {"method": roles.method, "notes": roles.notes})

    def _generated(self, progress: Callable[[float], None]) -> MotionBlocks:
        heard = self.heard
        animation = self._begin()
        took = np.zeros(2)

        def made(steps: Callable[[], Dict[str, Motion]]) -> Dict[str, Motion]:
            begun = np.array([time.perf_counter(), time.process_time()])
            # Whoever consumes, between blocks, has all threads.
            with one_thread():
                motions = steps()
            for name, motion in motions.items():
                writers[name].append(motion)
            took[:] += np.array([time.perf_counter(), time.process_time()]) - begun
            progress(animation.num_frames / max(1, heard.num_frames))
            return motions

        with contextlib.ExitStack() as stack:
            writers = {name: stack.enter_context(MotionWriter(self._work / f"motion-{name}")) for name in self.ids}
            for start, stop in heard.blocks(BLOCK_FRAMES, FIRST_BLOCK):
                yield made(lambda start=start, stop=stop: animation.advance(heard.signals(start, stop)))
            yield made(animation.finish)
            for name, writer in writers.items():
                writer.finish(self._motion_path(name))
        write_json(
            self._work / "motion_facts.json",
            {
                "unused": animation.unused,
                "sources": animation.sources,
                "steadiness": {name: figures.as_json() for name, figures in animation.steadiness().items()},
                "seconds": float(took[0]),
                "cpu_seconds": float(took[1]),
            },
        )

    def _recorded(self) -> MotionBlocks:
        """What an earlier run generated."""
        motions = {name: Motion.load(self._motion_path(name)) for name in self.ids}
        for start in range(0, self.num_frames, BLOCK_FRAMES):
            yield {name: motion.slice(start, start + BLOCK_FRAMES) for name, motion in motions.items()}

    def _finish(self) -> Dict[str, Any]:
        figures, roles = read_json(self._work / "motion_facts.json"), read_json(self._work / "role_facts.json")
        notes = [*roles["notes"]]
        notes += [
            f"{name} makes nothing that a later model does not make: it was left out." for name in figures["unused"]
        ]
        if not self.models:
            notes.append("No motion model was given: heads repeat what was recorded of them, and faces rest.")
        speaking = self.speaking
        shares = speaking.mean(axis=0) if len(speaking) else np.zeros(len(self.ids))
        record = {
            **synthetic_statement({"made_by": "ns-dialogue animate"}),
            "audio": self.audio.name,
            "people": self.people,
            "num_frames": self.num_frames,
            "fps": MOTION_FPS,
            "seconds": self.num_frames / MOTION_FPS,
            "seed": self.options.seed,
            "models": [{"name": model.named.name, **model.record} for model in self.models],
            "roles": {"method": roles["method"], "channels_are_people": self._separated},
            "participants": {
                name: {
                    "speaking_share": float(share),
                    "sources": figures["sources"][name],
                    "head_motion": figures["steadiness"][name],
                }
                for name, share in zip(self.ids, shares, strict=True)
            },
            "generation": {
                "seconds": figures["seconds"],
                "cpu_seconds": figures["cpu_seconds"],
                "frames_per_second": self.num_frames / max(figures["seconds"], 1e-9),
            },
            "stage_seconds": self._runner.seconds,
            "notes": notes,
        }
        write_json(self.output / ANIMATION_FILE, record)
        return record


def _fingerprint(character: Character) -> List[Any]:
    """Tells one recording of a person from another."""
    reference = character.reference
    numbers = [float(np.abs(getattr(reference, name)).sum(dtype=np.float64)) for name in reference.array_names]
    return [character.id, reference.num_frames, reference.expression_basis, int(character.was_speaking.sum()), *numbers]
