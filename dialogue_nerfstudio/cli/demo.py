"""`ns-dialogue demo`: everything once, on a simulated conversation, with figures."""

from dataclasses import dataclass
from pathlib import Path


@dataclass
class Demo:
    """Do everything once: simulate a conversation, process its video, train the avatars, measure them on held-out frames,
    and render a new conversation with sound.

    Finished stages are kept: the same command goes on where it stopped. Figures end up in summary.json.
    """

    output: Path = Path("demo")
    """Folder to write."""
    seconds: float = 14.0
    """Length of the conversation to learn from."""
    size: int = 256
    """Height and width of each person's picture, pixels."""
    resolution: int = 128
    """Height and width that the avatars are trained at, pixels."""
    iterations: int = 2500
    """Training iterations."""
    new_seconds: float = 6.0
    """Length of the new conversation that the avatars act."""
    seed: int = 0
    """Same seed, same conversation."""

    def run(self) -> int:
        raise NotImplementedError
