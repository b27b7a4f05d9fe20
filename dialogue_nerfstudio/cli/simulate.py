"""`ns-dialogue simulate`: make a conversation whose truth is known, as an ordinary video and as a true conversation."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Simulate:
    """Make a simulated conversation: a video with sound, and the true poses, expressions and roles behind it.

    Writes video.mp4, for `ns-dialogue process`, and truth/, to measure against and for `ns-dialogue render --motion`.
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
        from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation

        config = SimulationConfig(seconds=self.seconds, size=self.size, num_people=self.num_people, seed=self.seed)
        with StageProgress() as progress:
            simulate_conversation(config, self.output, lambda done, total: progress("simulate", done, total))
        Console().print(
            f"Simulated {self.num_people} people for {self.seconds:g} s in {self.output}\n"
            f"  ns-dialogue process {self.output / 'video.mp4'} --output data/{self.output.name}",
            highlight=False,
            soft_wrap=True,
        )
        return 0
