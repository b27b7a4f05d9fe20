"""`ns-dialogue simulate`: make a conversation whose truth is known, as an ordinary video and as a true conversation;
or, without pictures, hours of them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from dialogue_nerfstudio.conversation.errors import DialogueError

if TYPE_CHECKING:
    from dialogue_nerfstudio.conversation.simulate import SimulationConfig


@dataclass
class Simulate:
    """Make a simulated conversation: a video with sound, and the true poses, expressions and roles behind it.

    Writes video.mp4, for `ns-dialogue process`, and truth/, to measure against, for `ns-dialogue render --motion`, and
    for `ns-train dialogue-nerf --data OUTPUT/truth`, which learns from true poses instead of tracked ones.

    With --motion-only it makes many conversations without pictures instead, for motion models to learn from: who
    speaks, sound features, poses, expressions, blinks and gaze of many people, and what a perfect predictor would say.
    The same command goes on where it stopped, and with more --hours extends the folder.
    """

    output: Path = Path("simulated")
    """Folder to write."""
    seconds: Optional[float] = None
    """Length of the conversation, 12 s by default; of each conversation with --motion-only, 180 s by default."""
    size: int = 256
    """Height and width of each person's picture, pixels."""
    num_people: Optional[int] = None
    """How many people talk, 2 by default; how many there are with --motion-only, 12 by default."""
    seed: int = 0
    """Draws what is said and how everybody moves; same seed, same conversation."""
    motion_only: bool = False
    """Make hours of motion without pictures."""
    hours: Optional[float] = None
    """With --motion-only: how much conversation in all, 1 by default."""
    people_per_conversation: Optional[int] = None
    """With --motion-only: how many talk with each other at a time, 2 by default."""
    workers: Optional[int] = None
    """With --motion-only: processes; one a core by default."""

    def run(self) -> int:
        """
        Raises:
            DialogueError: an option out of range, or one of --motion-only without it.
        """
        if self.motion_only:
            return self._run_motion_only()
        given = [name for name in ("hours", "people_per_conversation", "workers") if getattr(self, name) is not None]
        if given:
            raise DialogueError(f"--{given[0].replace('_', '-')} is for --motion-only; add that, or leave it out.")
        return self._run_video()

    def _run_video(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.simulate import SimulationConfig

        defaults = SimulationConfig(seconds=12.0, size=self.size, seed=self.seed)
        config = replace(
            defaults,
            seconds=defaults.seconds if self.seconds is None else self.seconds,
            num_people=defaults.num_people if self.num_people is None else self.num_people,
        )
        with StageProgress() as progress:
            simulate_with_features(config, self.output, lambda done, total: progress("simulate", done, total))
        Console().print(
            f"Simulated {config.num_people} people for {config.seconds:g} s in {self.output}\n"
            f"  ns-dialogue process {self.output / 'video.mp4'} --output data/{self.output.name}",
            highlight=False,
            soft_wrap=True,
        )
        return 0

    def _run_motion_only(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.simulate.motion_hours import MotionHoursConfig, simulate_motion_hours

        given = {
            "hours": self.hours,
            "num_people": self.num_people,
            "people_per_conversation": self.people_per_conversation,
            "conversation_seconds": self.seconds,
        }
        config = MotionHoursConfig(
            seed=self.seed, **{name: value for name, value in given.items() if value is not None}
        )
        with StageProgress() as progress:
            manifest = simulate_motion_hours(
                config, self.output, self.workers, lambda done, total: progress("simulate", done, total)
            )
        size = sum(path.stat().st_size for path in self.output.glob("shard-*.safetensors"))
        splits = [entry.split for entry in manifest.conversations]
        Console().print(
            f"Simulated {len(splits)} conversations of {config.num_frames / manifest.fps:g} s between "
            f"{config.num_people} people in {self.output} ({size / 1e6:.0f} MB): {splits.count('train')} train, "
            f"{splits.count('eval')} eval, {splits.count('unseen')} unseen.\n"
            f"  ns-train dialogue-pose-tcn --data {self.output}",
            highlight=False,
            soft_wrap=True,
        )
        return 0


def simulate_with_features(
    config: "SimulationConfig", output: Path, progress: Callable[[int, int], None] | None = None
) -> Path:
    """`simulate_conversation`, and the truth's audio features, so that avatars can be trained on it; the video's path.

    Raises:
        DialogueError: an option out of range or a full disk.
    """
    from dialogue_nerfstudio.conversation.conversation import load_conversation
    from dialogue_nerfstudio.conversation.simulate import simulate_conversation
    from dialogue_nerfstudio.process.features import write_features

    video = simulate_conversation(config, output, progress)
    truth = load_conversation(Path(output) / "truth")
    audio, sample_rate = truth.audio()
    write_features(truth.path(), audio, sample_rate, truth.num_frames, truth.fps)
    return video
