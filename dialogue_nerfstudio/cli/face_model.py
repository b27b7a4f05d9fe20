"""`ns-dialogue face-model`: look at a face model, and keep what of it is needed in a small file of plain numbers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError


@dataclass
class FaceModelCommand:
    """Find the tracker's landmarks on a face model (BFM 2009 or 2017, FLAME, ICT-FaceKit) and write the basis that
    `process` and `refit` take in its place: smaller, faster to load, and never a pickle.

    FLAME's official .pkl and AD-NeRF's 3DMM_info.npy are pickles. They are read here without being run: an interpreter
    that calls nothing takes the numbers out of them.
    """

    path: Annotated[Path, tyro.conf.Positional]
    """The model's file or folder."""
    output: Optional[Path] = None
    """The .npz to write; the model's name in the current folder if not given."""
    landmarks: Optional[Path] = None
    """Where its landmarks are: 68 vertex numbers (.txt, .json) or FLAME's published .npz; from what is known of the
    model, or its shape, if not given."""

    def run(self) -> int:
        from dataclasses import replace

        import numpy as np
        from rich.console import Console

        from dialogue_nerfstudio.process.face_models import basis_of, load_face_model, read_landmarks

        output = self.output or Path(f"{self.path.stem}_basis.npz")
        if output.suffix != ".npz":
            raise DialogueError(f"{output} must end in .npz.")
        if output.exists():
            raise DialogueError(f"{output} exists already: give another --output.")
        model = load_face_model(self.path, read_pickle=True)
        if self.landmarks is not None:
            model = replace(model, known=read_landmarks(self.landmarks, model), surely_known=True)
        basis, where = basis_of(model)
        basis.save(output)
        largest = 1e3 * np.linalg.norm(basis.expression, axis=2).max(axis=1)
        console = Console(highlight=False, soft_wrap=True)
        console.print(
            f"{model.kind}: {len(model.vertices)} vertices, {len(basis.geometry)} modes of identity, "
            f"{len(basis.expression)} of expression (the strongest moves {largest.max():.1f} mm)."
        )
        console.print(
            f"The tracker's face lies {1e3 * where.rigid_distance:.1f} mm (median) from its mean face, and "
            f"{1e3 * where.distance:.1f} mm after bending; {len(model.known)} of its landmarks were known beforehand."
        )
        console.print(f"{basis.name} in {output}. Next:\n  ns-dialogue process VIDEO --face-model-path {output}")
        return 0
