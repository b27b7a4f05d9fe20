"""`ns-dialogue refit`: a conversation's expressions in another face model's basis."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro


@dataclass
class Refit:
    """Measure the expressions of a processed conversation again in another basis, from its landmarks where they are
    stored, else from the displacements of its old basis. The conversation is only read; a new one is written."""

    conversation: Annotated[Path, tyro.conf.Positional]
    """The conversation's folder."""
    output: Path
    """The folder to write."""
    face_model: Optional[Literal["shared", "bfm2009", "bfm2017", "flame", "ict"]] = None
    """The new basis; the shared one, or what --face-model-path is, if not given."""
    face_model_path: Optional[Path] = None
    """A face model's file or folder, or what `ns-dialogue face-model` wrote."""
    face_model_landmarks: Optional[Path] = None
    """Where the face model's landmarks are: 68 vertex numbers (.txt, .json) or FLAME's published .npz."""

    def run(self) -> int:
        import numpy as np
        from rich.console import Console
        from rich.table import Table

        from dialogue_nerfstudio.process.face_models import face_basis
        from dialogue_nerfstudio.process.refit import refit_conversation

        basis = face_basis(self.face_model, self.face_model_path, self.face_model_landmarks)
        results = refit_conversation(self.conversation, self.output, basis)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("participant", "from", "error before", "error after", "worst frame"):
            table.add_column(title)
        for result in results:
            before, after = (np.sqrt(np.mean(values**2)) for values in (result.before, result.after))
            worst = int(result.after.argmax())
            table.add_row(
                result.participant,
                result.source,
                "unknown" if np.isnan(before) else f"{before:.2f} {result.unit}",
                f"{after:.2f} {result.unit}",
                f"{worst} ({result.after[worst]:.2f} {result.unit})",
            )
        console = Console(highlight=False, soft_wrap=True)
        console.print(table)
        console.print(f"The expressions in {self.output} are in the basis {basis.name}.")
        return 0
