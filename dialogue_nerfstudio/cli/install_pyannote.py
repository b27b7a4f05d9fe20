"""`ns-dialogue install-pyannote`: build the environment that `process --diarizer pyannote` runs in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional


@dataclass
class InstallPyannote:
    """Build an environment of its own for the diarizer pyannote.audio, which cannot share one with nerfstudio.

    Once; it takes some minutes and up to 10 GB (less with CPU builds of torch). Remove its folder to be rid of it.
    """

    folder: Optional[Path] = None
    """Where; the user's cache folder (~/.cache/dialogue-nerfstudio/pyannote) if not given."""
    index_url: Optional[str] = None
    """A package index to look at besides PyPI, for example https://download.pytorch.org/whl/cpu for torch without
    CUDA."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.process.pyannote_environment import install_pyannote

        console = Console()
        folder = install_pyannote(
            self.folder, self.index_url, say=lambda line: console.print(line, highlight=False, soft_wrap=True)
        )
        where = "" if self.folder is None else f" --pyannote-folder {folder}"
        console.print(
            f"To use it:\n  ns-dialogue process VIDEO --diarizer pyannote{where} --hf-token TOKEN",
            highlight=False,
            soft_wrap=True,
        )
        return 0
