"""`ns-dialogue simulate`: make a conversation whose truth is known, as an ordinary video and as a true conversation."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Simulate:
    """Make a simulated conversation: a video with sound, and the true poses, expressions and roles behind it.

    Writes video.mp4 (what `ns-dialogue process` takes) and truth/ (a conversation, what `ns-train` takes).
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
    """Same seed, same conversation."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation

        config = SimulationConfig(seconds=self.seconds, size=self.size, num_people=self.num_people, seed=self.seed)
        with StageProgress() as progress:
            simulate_conversation(config, self.output, progress=progress)
        Console().print(
            f"Simulated {self.num_people} people for {self.seconds:g} s in {self.output}\n"
            f"  ns-dialogue process {self.output / 'video.mp4'} --output data/{self.output.name}\n"
            f"  ns-train dialogue-nerf --data {self.output / 'truth'}"
        )
        return 0
