"""`ns-dialogue export-motion`: motion for other programs, as CSV with ARKit's names, NPZ, or animated glTF."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Optional

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError


@dataclass
class ExportMotion:
    """Write the motion of a conversation, of an animation, or of a motion file for other programs.

    csv: a table for each person, a row a frame, with ARKit's blendshape names. npz: plain NumPy arrays. gltf: one .glb
    with everybody's landmark mesh, animated, that standard viewers open.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Conversation folder, folder that animate wrote, folder of motions, or one motion file."""
    format: Literal["csv", "npz", "gltf"] = "gltf"
    """What to write."""
    output: Optional[Path] = None
    """Folder for csv and npz, .glb file for gltf; beside the source if not given."""
    participants: tuple[str, ...] = ()
    """Whose motion; everybody's if not given."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.conversation.files import read_npz
        from dialogue_nerfstudio.output.arkit import tracked_weights
        from dialogue_nerfstudio.output.driving import load_other_motion
        from dialogue_nerfstudio.output.motion_export import export_motions
        from dialogue_nerfstudio.output.video import synthetic_statement

        output = self.output or _beside(self.source, self.format)
        if self.format == "gltf" and output.suffix.lower() != ".glb":
            raise DialogueError(f"--output {output}: a glTF is written as .glb; change its name.")
        if self.format != "gltf" and output.is_file():
            raise DialogueError(f"--output {output} is a file; give a folder, it gets a file for each person.")
        other = load_other_motion(self.source)
        for name in self.participants:
            if name not in other.motions:
                raise DialogueError(
                    f"--participants {name}: there is no motion of them in {self.source}; there is "
                    f"{', '.join(other.motions)}."
                )
        motions = {name: other.motions[name] for name in self.participants or other.motions}
        tracked = {}
        for name, motion in motions.items():
            path = self.source / "participants" / name / "tracking.npz"
            # Motion that was generated has nothing to do with what a tracker saw.
            if path.is_file() and motion.sources.get("expression", "tracked") == "tracked":
                weights = tracked_weights(read_npz(path), motion.num_frames, str(path))
                if weights is not None:
                    tracked[name] = weights
        generated = {name: motion.sources for name, motion in motions.items()}
        written = export_motions(motions, self.format, output, tracked, synthetic_statement({"sources": generated}))
        console = Console()
        for path in written:
            console.print(str(path), highlight=False, soft_wrap=True)
        return 0


def _beside(source: Path, kind: str) -> Path:
    stem = source.with_suffix("") if source.is_file() else source
    return stem.with_name(f"{stem.name}.glb" if kind == "gltf" else f"{stem.name}_{kind}")
