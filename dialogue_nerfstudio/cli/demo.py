"""`ns-dialogue demo`: everything once, on a simulated conversation, with figures."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from dialogue_nerfstudio.cli.progress import StageProgress


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
    resolution: Optional[int] = 128
    """Height and width that the avatars are trained at, pixels; the method's default for this device if None."""
    iterations: int = 2500
    """Training iterations."""
    new_seconds: float = 6.0
    """Length of the new conversation that the avatars act."""
    seed: int = 0
    """Same seed, same conversation."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress

        with StageProgress() as progress:
            summary = run_demo(self, progress)
        _print_summary(Console(), summary, self.output)
        return 0


def run_demo(options: Demo, progress: "StageProgress") -> dict[str, Any]:
    """All stages, skipping what is finished; the summary, which is also written to summary.json.

    Raises:
        DialogueError: if something is missing that a stage needs, or the disk is full.
    """
    from dialogue_nerfstudio.cli.stages import StageLog
    from dialogue_nerfstudio.conversation.files import write_json

    folder = options.output
    simulated, conversation = folder / "simulated", folder / "conversation"
    script, video = folder / "script", folder / "new_conversation.mp4"
    config = folder / "training" / "conversation" / "dialogue-nerf" / "run" / "config.yml"
    comparison = folder / "comparison.png"

    log = StageLog(folder / "stages")
    people = {"size": options.size, "seed": options.seed}
    log.run(
        "simulate",
        {"seconds": options.seconds, **people},
        [simulated / "video.mp4", simulated / "truth" / "conversation.json"],
        lambda: _simulate(simulated, options.seconds, options.size, options.seed, progress),
    )
    log.run("process", people, [conversation / "conversation.json"], lambda: _process(simulated, conversation, options, progress))
    tracking = log.run("tracking", {}, [], lambda: _compare_tracking(conversation, simulated / "truth"))
    log.run(
        "train",
        {"iterations": options.iterations, "resolution": options.resolution},
        [config],
        lambda: _train(conversation, folder / "training", options, progress),
    )
    held_out = log.run("measure", {}, [comparison], lambda: _measure(config, comparison, progress))
    log.run(
        "script",
        {"seconds": options.new_seconds, **people},
        [script / "truth" / "conversation.json"],
        lambda: _simulate(script, options.new_seconds, 64, options.seed + 1, progress),
    )
    rendered = log.run("render", {}, [video], lambda: _render(config, script / "truth", video, progress))
    summary = {
        "video": str(video),
        "comparison": str(comparison),
        "config": str(config),
        "participants": held_out,
        "tracking": tracking,
        "render": rendered,
        "seconds": {**log.seconds, "total": sum(log.seconds.values())},
        "options": {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()},
    }
    write_json(folder / "summary.json", summary)
    return summary
