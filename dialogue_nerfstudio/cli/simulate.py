"""`ns-dialogue simulate`: make a conversation whose truth is known, as an ordinary video and as a true conversation."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from dialogue_nerfstudio.conversation.simulate import SimulationConfig


@dataclass
class Simulate:
    """Make a simulated conversation: a video with sound, and the true poses, expressions and roles behind it.

    Writes video.mp4, for `ns-dialogue process`, and truth/, to measure against, for `ns-dialogue render --motion`, and
    for `ns-train dialogue-nerf --data OUTPUT/truth`, which learns from true poses instead of tracked ones.
    """

    output: Path = Path("simulated")
    """Folder to write."""
    seconds: float = 12.0
    """Length of the conversation."""
    size: int = 256
    """Height and width of each person's picture, pixels."""
    num_people: int = 2
    """How many people talk."""
    seed: int = 0
    """Draws what is said and how everybody moves; same seed, same conversation."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.simulate import SimulationConfig

        config = SimulationConfig(seconds=self.seconds, size=self.size, num_people=self.num_people, seed=self.seed)
        with StageProgress() as progress:
            simulate_with_features(config, self.output, lambda done, total: progress("simulate", done, total))
        Console().print(
            f"Simulated {self.num_people} people for {self.seconds:g} s in {self.output}\n"
            f"  ns-dialogue process {self.output / 'video.mp4'} --output data/{self.output.name}",
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
