"""`ns-dialogue animate`: a sound and trained motion models become a folder in which everybody moves, and a video."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Optional

from dialogue_nerfstudio.conversation.errors import DialogueError

if TYPE_CHECKING:
    from dialogue_nerfstudio.conversation.conversation import Conversation
    from dialogue_nerfstudio.output.animation import AnimationModel, MotionBlocks, SoundAnimation


@dataclass
class Animate:
    """Animate people by a sound: who speaks when is found out, and everybody's motion is generated.

    OUTPUT is a folder for `ns-dialogue render --load-config AVATARS --motion OUTPUT`: sound, roles, a motion of each
    person, and animation.json, which says what made what. What no model generates is taken from the person's own
    recording: their resting face, their blinks, eyes that hold their target. Head poses stay among those recorded.
    """

    load_config: tuple[Path, ...]
    """config.yml of trained motion models (of the same thing the last one counts), and of the avatars, whose recording
    says who is animated."""
    audio: Path
    """What is heard: any file with sound. Two channels that are one person each are told by themselves."""
    output: Path
    """Folder to write; an interrupted run goes on."""
    people: Optional[Path] = None
    """Conversation of the people to animate, where --load-config names no avatars or others are meant."""
    participants: tuple[str, ...] = ()
    """Who is animated, in the order of channels, or of voices as they are first heard; everybody if not given."""
    speaker: Optional[str] = None
    """Who speaks, throughout."""
    rttm: Optional[Path] = None
    """Who speaks when; otherwise voices are told apart."""
    channels: Literal["auto", "mix", "person-each"] = "auto"
    """Whether the two channels of the sound are a person each."""
    num_voices: Optional[int] = None
    """How many voices there are, where there are more than people: what the others say is nobody's."""
    seed: int = 0
    """Same seed, same motion."""
    render: Optional[Path] = None
    """Also render a video (.mp4) while generating, by the avatars of --load-config."""
    resolution: Optional[int] = None
    """Height of each person's picture in the video, pixels; as trained if not given."""
    audio_weights: Optional[str] = None
    """Where the network is that hears the sound for avatars trained with wav2lip, hubert or wav2vec2."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress

        if self.render is not None and self.render.suffix.lower() != ".mp4":
            raise DialogueError(f"--render {self.render}: the video must be an .mp4 file; change its name.")
        if self.render is None and (self.resolution is not None or self.audio_weights is not None):
            raise DialogueError("--resolution and --audio-weights are about a video: add --render, or leave them out.")
        console = Console()
        with StageProgress(console=console) as progress:
            progress("load", 0, 1)
            avatars, motion_configs = sort_configs(self.load_config)
            if self.render is not None and avatars is None:
                raise DialogueError("--render needs avatars: add their config.yml to --load-config.")
            conversation = people_of(avatars, self.people)
            models = [load_motion_model(path) for path in motion_configs]
            animation = self._animation(conversation, models, progress)
            renderer = None if self.render is None else VideoOfAnimation(self, avatars, conversation, animation)
            progress("load", 1, 1)
            record = animation.run(None if renderer is None else renderer.consume)
        for note in record["notes"]:
            console.print(note, highlight=False, soft_wrap=True)
        _print_summary(console, record, self)
        return 0

    def _animation(
        self, conversation: "Conversation", models: "Sequence[AnimationModel]", progress: Any
    ) -> "SoundAnimation":
        from dialogue_nerfstudio.output.animation import AnimationOptions, SoundAnimation, recorded_characters

        options = AnimationOptions(self.speaker, self.rttm, self.channels, self.num_voices, self.seed)
        characters = recorded_characters(conversation, self.participants)
        return SoundAnimation(
            self.audio, self.output, characters, models, Path(conversation.root).name, options, progress
        )


def sort_configs(paths: "Sequence[Path]") -> tuple[Optional[Path], list[Path]]:
    """The avatars' config among some, if it is there, and the motion models' in their order.

    Raises:
        DialogueError: a config is missing, not readable, of neither kind, or avatars are named twice.
    """
    import yaml

    from dialogue_nerfstudio.motion.training.config import METHODS as MOTION_METHODS
    from dialogue_nerfstudio.nerf.config import METHODS as AVATAR_METHODS
    from dialogue_nerfstudio.nerf.config_reader import read_yaml

    avatars: list[Path] = []
    motion: list[Path] = []
    for path in paths:
        if not path.is_file():
            raise DialogueError(f"--load-config {path}: there is no such file; give a config.yml that ns-train wrote.")
        try:
            method = getattr(read_yaml(path.read_text(encoding="utf-8")), "method_name", None)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise DialogueError(f"{path} is not a readable config ({reason}); train again.") from error
        if method in AVATAR_METHODS:
            avatars.append(path)
        elif method in MOTION_METHODS:
            motion.append(path)
        else:
            raise DialogueError(
                f"{path} is a config of {method or 'nothing known'}; animate takes those of motion models "
                f"({', '.join(MOTION_METHODS)}) and of avatars ({', '.join(AVATAR_METHODS)})."
            )
    if len(avatars) > 1:
        raise DialogueError(f"{' and '.join(map(str, avatars))} are both configs of avatars; give one of them.")
    return (avatars[0] if avatars else None), motion


def people_of(avatars: Optional[Path], people: Optional[Path]) -> "Conversation":
    """The conversation whose people are animated.

    Raises:
        DialogueError: none is named, or it cannot be read.
    """
    from dialogue_nerfstudio.conversation.conversation import load_conversation

    if people is not None:
        return load_conversation(people)
    if avatars is None:
        raise DialogueError(
            "nobody is named to animate: add the avatars' config.yml to --load-config, or give --people with a "
            "conversation folder."
        )
    from dialogue_nerfstudio.cli.render import training_conversation
    from dialogue_nerfstudio.nerf.load import read_config

    return training_conversation(read_config(avatars))


def load_motion_model(path: Path) -> "AnimationModel":
    """A trained motion model, with what is to be said of it.

    Raises:
        DialogueError: its checkpoint is missing or damaged.
    """
    from dialogue_nerfstudio.motion.animation import NamedGenerator
    from dialogue_nerfstudio.motion.training.load import load_generator
    from dialogue_nerfstudio.output.animation import AnimationModel
    from dialogue_nerfstudio.process.stages import source_fingerprint

    config, generator = load_generator(path)
    name = f"{config.method_name} ({config.get_base_dir().name})"
    record = {
        "method": config.method_name,
        "run": config.get_base_dir().name,
        "checkpoint_step": config.load_step,
        "provides": list(generator.provides),
    }
    checkpoints = sorted(Path(config.load_dir).glob(f"step-{config.load_step:09d}.ckpt"))
    return AnimationModel(NamedGenerator(name, generator), record, source_fingerprint([path, *checkpoints]))


class VideoOfAnimation:
    """Renders an animation while it is generated.

    Args:
        options: of the command.
        avatars: their config.
        conversation: that they were trained on; people of other conversations cannot be shown.
        animation: what is rendered.

    Raises:
        DialogueError: the avatars cannot be loaded, or somebody animated is none of them.
    """

    def __init__(self, options: Animate, avatars: Path, conversation: "Conversation", animation: "SoundAnimation"):
        from dialogue_nerfstudio.cli.render import training_conversation
        from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
        from dialogue_nerfstudio.output.driving import Hearing

        self._options, self._animation = options, animation
        self._config, self._pipeline = load_pipeline_for_rendering(avatars)
        self._conversation = training_conversation(self._config)
        unknown = [name for name in animation.ids if name not in self._conversation.participant_ids]
        if unknown:
            raise DialogueError(
                f"--render: there is no avatar of {', '.join(unknown)}; these avatars are "
                f"{', '.join(self._conversation.participant_ids)}. Leave out --people, or render the folder with "
                "--motion-map."
            )
        feature = self._config.pipeline.datamanager.dataparser.audio_feature
        self._hearing = Hearing(feature, options.audio_weights)
        self.first_frame: Optional[float] = None
        """time.perf_counter() when the first picture was there."""

    def consume(self, blocks: "MotionBlocks") -> None:
        """Writes the video."""
        from dialogue_nerfstudio.cli.live_render import render_while_generating
        from dialogue_nerfstudio.conversation.conversation import SAMPLE_RATE
        from dialogue_nerfstudio.output.video import write_conversation_video

        heard = self._animation.heard
        frames = self._timed(
            render_while_generating(
                self._pipeline,
                self._conversation,
                blocks,
                heard,
                self._hearing,
                self._animation.ids,
                self._options.resolution,
            )
        )
        provenance = {
            "method": self._config.method_name,
            "run": self._config.get_base_dir().name,
            "checkpoint_step": self._config.load_step,
            "participants": self._animation.ids,
            "recordings": list(self._conversation.provenance.get("inputs", [])),
            "sources": [Path(self._conversation.root).name, self._options.audio.name],
            "motion_models": [model.named.name for model in self._animation.models],
            "seed": self._options.seed,
        }
        write_conversation_video(self._options.render, frames, heard.fps, heard.mix.read, SAMPLE_RATE, provenance)

    def _timed(self, frames: Any) -> Any:
        for frame in frames:
            if self.first_frame is None:
                self.first_frame = time.perf_counter()
            yield frame


def _print_summary(console: Any, record: dict[str, Any], options: Animate) -> None:
    from rich.table import Table

    table = Table(title=f"{record['num_frames']} frames, {record['seconds']:.1f} s")
    for column in ("", "speaks", "drift a 10 s", "frozen", "limited", "as lively as recorded", "what makes it"):
        table.add_column(column)
    for name, person in record["participants"].items():
        head = person["head_motion"]
        table.add_row(
            name,
            f"{person['speaking_share']:.0%}",
            f"{head['drift_degrees_per_10s']:.2f}°, {head['drift_mm_per_10s']:.1f} mm",
            f"{head['frozen_share']:.0%}",
            f"{head['share_limited']:.1%}",
            f"{head['rotation_deviation_of_reference']:.0%}",
            "\n".join(f"{field}: {source}" for field, source in person["sources"].items()),
        )
    console.print(table)
    console.print(
        f"{options.output}: {record['generation']['frames_per_second']:.0f} frames/s of motion. To see it:\n"
        f"  ns-dialogue render --load-config AVATARS --motion {options.output} --output {options.output.name}.mp4"
        if options.render is None
        else f"{options.output} and {options.render}",
        highlight=False,
        soft_wrap=True,
    )
