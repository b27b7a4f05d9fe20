"""`ns-dialogue process`: turn a video of people talking into a conversation that avatars can be trained on."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Optional

import tyro

from dialogue_nerfstudio.conversation.errors import DialogueError


@dataclass
class Process:
    """Turn a video of people talking into a conversation: who speaks when, each face's pose, expression, blink and gaze,
    audio features, masks.

    Finished stages are kept: the same command goes on where it stopped. Figures end up in process.json.
    """

    videos: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="VIDEO [VIDEO ...]")]
    """One video of everybody, or one video a person (synchronous)."""
    output: Optional[Path] = None
    """Folder to write; data/NAME_OF_THE_VIDEO if not given."""
    num_people: Optional[int] = None
    """How many people to expect; found automatically if not given."""
    size: int = 256
    """Height and width of each person's picture, pixels."""
    focal: Optional[float] = None
    """Focal length in pixels of the person's picture; twice its width if not given."""
    ipd: float = 0.063
    """Distance between the pupils, metres: what gives the scene its scale."""
    rttm: Optional[Path] = None
    """Who speaks when, as RTTM with the participants' ids as speakers; found automatically if not given."""
    eval_fraction: float = 0.1
    """Part of the video, at its end, that training does not see."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress
        from dialogue_nerfstudio.conversation.files import write_json
        from dialogue_nerfstudio.process.pipeline import ProcessConfig, process_video

        if not self.videos:
            raise DialogueError("Name a video to process, e.g. `ns-dialogue process chat.mp4 --output data/chat`.")
        output = self.output or Path("data") / self.videos[0].stem
        config = ProcessConfig(
            num_people=self.num_people,
            size=self.size,
            focal=self.focal,
            ipd=self.ipd,
            rttm=self.rttm,
            eval_fraction=self.eval_fraction,
        )
        start = time.perf_counter()
        with StageProgress() as progress:
            conversation = process_video(list(self.videos), output, config, progress=progress)
        summary = summarise(conversation, time.perf_counter() - start, progress.seconds)
        write_json(output / "process.json", summary)
        _print_summary(Console(), summary, output)
        return 0


def summarise(conversation: Any, total_seconds: float, stage_seconds: dict[str, float]) -> dict[str, Any]:
    """The figures of a processed conversation, JSON-serialisable.

    Args:
        conversation: a `Conversation` with its files.
        total_seconds: wall time of the command.
        stage_seconds: wall time of each stage that ran.
    """
    import numpy as np

    speaking = conversation.speaking
    participants = {}
    for column, participant in enumerate(conversation.participants):
        tracking = conversation.tracking(participant.id)
        visible = tracking["visible"].astype(bool)
        participants[participant.id] = {
            "name": participant.name,
            "visible_frames": int(visible.sum()),
            "reprojection_error_px": float(np.median(tracking["reprojection_error"][visible])) if visible.any() else None,
            "speaking_seconds": float(speaking[:, column].sum() / conversation.fps),
        }
    return {
        "output": str(conversation.root),
        "num_frames": conversation.num_frames,
        "fps": conversation.fps,
        "train_frames": len(conversation.train_frames),
        "eval_frames": len(conversation.eval_frames),
        "features": conversation.feature_names,
        "participants": participants,
        "seconds": {"total": total_seconds, **stage_seconds},
    }


def _print_summary(console: Any, summary: dict[str, Any], output: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("participant", "tracked frames", "reprojection (px)", "speaks (s)"):
        table.add_column(title)
    for participant_id, entry in summary["participants"].items():
        error = entry["reprojection_error_px"]
        table.add_row(
            participant_id,
            f"{entry['visible_frames']} of {summary['num_frames']}",
            "–" if error is None else f"{error:.2f}",
            f"{entry['speaking_seconds']:.1f}",
        )
    console.print(table)
    console.print(
        f"{summary['num_frames']} frames in {output}, {summary['seconds']['total']:.0f} s. Next:\n"
        f"  ns-train dialogue-nerf --data {output}"
    )
