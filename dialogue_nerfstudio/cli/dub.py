"""`ns-dialogue dub`: two-person conversations put together from recordings of single speakers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError


@dataclass
class Dub:
    """Put conversations of two people together from recordings of one each: cut at pauses, in turns, with one sound.

    Any number of training data from what there is plenty of. The results are ordinary conversations; their
    provenance says for each frame whether somebody speaks, is silent, or is a filler, and where the cuts are. Nobody
    in them listens to the other: use them to learn lips, not reactions. The same command goes on where it stopped.
    """

    folders: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER [FOLDER ...]")]
    """Conversations of one person each, or folders of such, as `ns-dialogue process` wrote them."""
    output: Path = Path("data/dubbed")
    """Folder to write: dub-0000, dub-0001, … and manifest.jsonl."""
    count: int = 1
    """How many conversations to make."""
    seed: int = 0
    """Decides who meets whom, and the turns."""
    seconds: float = 20.0
    """How long each becomes; shorter where somebody runs out of speech."""
    min_turn: float = 0.6
    """Shortest turn, seconds."""
    max_turn: float = 6.0
    """Longest turn, seconds."""
    min_pause: float = 0.3
    """Shortest pause at which speech is cut, seconds."""
    min_gap: float = 0.1
    """Shortest silence between two turns, seconds."""
    max_gap: float = 0.6
    """Longest silence between two turns, seconds."""
    engine: Literal["local", "ray"] = "local"
    """Where they are made: local for processes of this machine, ray for Ray here or on a cluster."""
    workers: Optional[int] = None
    """How many at once; one for every two cores if not given."""
    ray_address: Optional[str] = None
    """With --engine ray, a running cluster: HOST:PORT, ray://HOST:PORT or auto; this machine if not given."""
    retries: int = 1
    """How often one whose process was killed, or failed without a sentence, is tried again."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.many import ManyProgress, print_outcome
        from dialogue_nerfstudio.process.dub import DubConfig
        from dialogue_nerfstudio.process.manifest import MANIFEST
        from dialogue_nerfstudio.process.many import ManyConfig, dub_many

        if not self.folders:
            raise DialogueError("Name conversations of one person each, e.g. `ns-dialogue dub data/ann data/bob`.")
        config = DubConfig(
            seconds=self.seconds,
            min_turn=self.min_turn,
            max_turn=self.max_turn,
            min_pause=self.min_pause,
            min_gap=self.min_gap,
            max_gap=self.max_gap,
        )
        many = ManyConfig(self.engine, self.workers, self.ray_address, self.retries)
        with ManyProgress() as progress:
            entries = dub_many(self.folders, self.output, self.count, self.seed, config, many, progress)
        return print_outcome(Console(), entries, self.output, self.output / MANIFEST)
