"""`ns-dialogue demo`: everything once, on a simulated conversation, with figures."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from dialogue_nerfstudio.cli.progress import StageProgress
    from dialogue_nerfstudio.conversation.conversation import Conversation


@dataclass
class Demo:
    """Do everything once: simulate a conversation, process its video, train the avatars, measure them on held-out
    frames, and render a new conversation with sound.

    Finished stages are kept: the same command goes on where it stopped. Figures end up in summary.json.
    """

    output: Path = Path("demo")
    """Folder to write."""
    seconds: float = 20.0
    """Length of the conversation to learn from."""
    size: int = 256
    """Height and width of each person's picture, pixels."""
    resolution: Optional[int] = 128
    """Height and width that the avatars are trained at, pixels; the method's default for this device if None."""
    iterations: int = 4500
    """Training iterations."""
    new_seconds: float = 6.0
    """Length of the new conversation that the avatars act."""
    seed: int = 0
    """Same seed, same conversation."""
    processes: Optional[int] = None
    """Processes that share training steps on a CPU; as many as pay if None."""

    def run(self) -> int:
        from rich.console import Console

        from dialogue_nerfstudio.cli.progress import StageProgress

        with StageProgress(shares(self)) as progress:
            summary = run_demo(self, progress)
        _print_summary(Console(), summary, self.output)
        return 0


def shares(options: Demo) -> dict[str, float]:
    """Seconds that each stage takes on two cores, measured; only the estimate of the time left depends on it."""
    from dialogue_nerfstudio.cli.process import SHARES

    pixels = (options.size / 256) ** 2
    return {
        "simulated": 4.0 * options.seconds * pixels,
        **{stage: share * options.seconds * pixels / 10 for stage, share in SHARES.items()},
        "train": options.iterations / 14,
        "measure": 1.0 * options.seconds,
        "script": 1.5 * options.new_seconds * pixels,
        "script: process": 2.0 * options.new_seconds * pixels,
        "render": 5.0 * options.new_seconds,
    }


def run_demo(options: Demo, progress: "StageProgress") -> dict[str, Any]:
    """All stages, skipping what is finished; the summary, which is also written to summary.json.

    Raises:
        DialogueError: if something is missing that a stage needs, or the disk is full.
    """
    from dialogue_nerfstudio.cli.process import SHARES
    from dialogue_nerfstudio.cli.stages import StageLog
    from dialogue_nerfstudio.conversation.files import write_json

    folder = options.output
    simulated, conversation = folder / "simulated", folder / "conversation"
    script, video = folder / "script", folder / "new_conversation.mp4"
    config = folder / "training" / "conversation" / "dialogue-nerf" / "run" / "config.yml"
    comparison, stills = folder / "comparison.png", folder / "new_conversation.png"

    log = StageLog(folder / "stages")
    people = {"size": options.size, "seed": options.seed}

    def run(
        name: str, changing: dict[str, Any], files: list[Path], action: Callable[[], Any], bars: Iterable[str]
    ) -> Any:
        result = log.run(name, changing, files, action)
        for bar in bars:
            progress(bar, 1, 1)
        return result

    run(
        "simulate",
        {"seconds": options.seconds, **people},
        [simulated / "video.mp4", simulated / "truth" / "conversation.json"],
        lambda: _simulate(simulated, options.seconds, options.size, options.seed, progress),
        ["simulated"],
    )
    run(
        "process",
        people,
        [conversation / "conversation.json"],
        lambda: _process(simulated, conversation, options.size, progress),
        SHARES,
    )
    tracking = run("tracking", {}, [], lambda: _compare_tracking(conversation, simulated / "truth"), [])
    run(
        "train",
        {"iterations": options.iterations, "resolution": options.resolution},
        [config],
        lambda: _train(conversation, folder / "training", options, progress),
        ["train"],
    )
    held_out = run("measure", {}, [comparison], lambda: _measure(config, comparison, progress), ["measure"])
    run(
        "script",
        {"seconds": options.new_seconds, **people},
        [script / "conversation" / "conversation.json"],
        lambda: _write_script(script, options, progress),
        ["script", "script: process"],
    )
    acted = script / "conversation"
    rendered = run("render", {}, [video, stills], lambda: _render(config, acted, video, stills, progress), ["render"])
    summary = {
        "video": str(video),
        "stills": str(stills),
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


def _simulate(folder: Path, seconds: float, size: int, seed: int, progress: "StageProgress") -> None:
    from dialogue_nerfstudio.cli.simulate import simulate_with_features
    from dialogue_nerfstudio.conversation.simulate import SimulationConfig

    config = SimulationConfig(seconds=seconds, size=size, num_people=2, seed=seed)
    simulate_with_features(config, folder, lambda done, total: progress(folder.name, done, total))


def _process(simulated: Path, conversation: Path, size: int, progress: Callable[[str, float, float], None]) -> None:
    from dialogue_nerfstudio.process.pipeline import ProcessConfig, process_video

    config = ProcessConfig(num_people=2, size=size)
    process_video([simulated / "video.mp4"], conversation, config, progress=progress)


def _write_script(folder: Path, options: Demo, progress: "StageProgress") -> None:
    """Another conversation of the same people, processed as any video would be: what the avatars are to act.

    At half the size: only its motion and sound are used.
    """
    from dialogue_nerfstudio.cli.process import SHARES

    size = max(96, options.size // 4 * 2)
    _simulate(folder, options.new_seconds, size, options.seed + 1, progress)
    total = sum(SHARES.values())
    done: dict[str, float] = {}

    def report(stage: str, part: float, whole: float) -> None:
        done[stage] = SHARES[stage] * part / whole
        progress("script: process", sum(done.values()), total)

    _process(folder, folder / "conversation", size, report)


def _compare_tracking(tracked_root: Path, truth_root: Path) -> dict[str, Any]:
    """How far what `process` found is from what the simulation knows."""
    from dialogue_nerfstudio.conversation.conversation import load_conversation
    from dialogue_nerfstudio.metrics.tracking import blink_score, role_accuracy, rotation_error_degrees

    tracked, truth = load_conversation(tracked_root), load_conversation(truth_root)
    num_frames = min(tracked.num_frames, truth.num_frames)
    order = _match_people(tracked, truth, num_frames)
    figures: dict[str, Any] = {"participants": {}}
    for person, column in zip(tracked.participants, order, strict=True):
        found = person.motion.slice(0, num_frames)
        true = truth.participants[column].motion.slice(0, num_frames)
        rotations = found.head_pose[:, :3], true.head_pose[:, :3]
        centred = rotation_error_degrees(*rotations, remove_offset=True)
        blinks = blink_score(found.blink, true.blink, tracked.fps)
        figures["participants"][person.id] = {
            "true_participant": truth.participants[column].id,
            "head_rotation_degrees": float(rotation_error_degrees(*rotations).mean()),
            "head_rotation_degrees_offset_removed": float(centred.mean()),
            "blink_f1": blinks.f1,
            "blinks_found": blinks.predicted,
            "blinks_true": blinks.true,
        }
    accuracy = role_accuracy(tracked.speaking[:num_frames], truth.speaking[:num_frames, order])
    return {**figures, "role_accuracy_per_frame": accuracy["per_frame"], "role_accuracy_per_role": accuracy["per_role"]}


def _match_people(tracked: "Conversation", truth: "Conversation", num_frames: int) -> list[int]:
    """For each tracked participant the row of the true one whose head turns most alike."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    from dialogue_nerfstudio.metrics.tracking import rotation_error_degrees

    cost = np.array(
        [
            [
                rotation_error_degrees(
                    found.motion.head_pose[:num_frames, :3], true.motion.head_pose[:num_frames, :3], remove_offset=True
                ).mean()
                for true in truth.participants
            ]
            for found in tracked.participants
        ]
    )
    return linear_sum_assignment(cost)[1].tolist()


def _train(conversation: Path, output_dir: Path, options: Demo, progress: "StageProgress") -> None:
    from dialogue_nerfstudio.cli.training import train_avatars

    def share_steps(config: Any) -> None:
        # Without a viewer, whose threads are what speaks against it.
        config.pipeline.processes = options.processes

    train_avatars(
        conversation,
        output_dir,
        options.iterations,
        options.seed,
        options.resolution,
        progress,
        configure=share_steps,
    )


def _measure(config_path: Path, comparison: Path, progress: "StageProgress") -> dict[str, dict[str, float]]:
    """Metrics of all held-out frames, and a picture of a few of them beside what was rendered."""
    from PIL import Image

    from dialogue_nerfstudio.cli.training import compare_held_out, measure_held_out
    from dialogue_nerfstudio.conversation.files import atomic_path
    from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering
    from dialogue_nerfstudio.output.layout import contact_sheet

    _, pipeline = load_pipeline_for_rendering(config_path)
    metrics = measure_held_out(pipeline, progress)
    rows = compare_held_out(pipeline, count=6)
    with atomic_path(comparison) as temporary:
        Image.fromarray(contact_sheet(rows, height=rows[0][0].shape[0])).save(temporary)
    return metrics


def _render(config_path: Path, script: Path, video: Path, stills: Path, progress: "StageProgress") -> dict[str, Any]:
    """The avatars act what was said and done in another conversation; a few frames of it also as a picture."""
    import numpy as np
    from PIL import Image

    from dialogue_nerfstudio.cli.render import Render, render_video
    from dialogue_nerfstudio.conversation.files import atomic_path, write_json
    from dialogue_nerfstudio.conversation.video import FrameReader
    from dialogue_nerfstudio.output.layout import contact_sheet

    summary = render_video(Render(load_config=config_path, output=video, motion=script), progress)
    write_json(video.with_suffix(".json"), summary)
    with FrameReader(video) as reader:
        chosen = [reader[int(index)] for index in np.linspace(0, len(reader) - 1, 6).round()]
    with atomic_path(stills) as temporary:
        Image.fromarray(contact_sheet([chosen[:3], chosen[3:]], height=chosen[0].shape[0])).save(temporary)
    return summary


def _print_summary(console: Any, summary: dict[str, Any], output: Path) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("participant", "PSNR (dB)", "SSIM"):
        table.add_column(title)
    for participant_id, metrics in summary["participants"].items():
        table.add_row(participant_id, f"{metrics['psnr']:.2f}", f"{metrics['ssim']:.4f}")
    console.print(table)
    tracking = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("tracked against true", "head rotation (°)", "offset removed (°)", "blink F1"):
        tracking.add_column(title)
    for participant_id, figures in summary["tracking"]["participants"].items():
        tracking.add_row(
            participant_id,
            f"{figures['head_rotation_degrees']:.2f}",
            f"{figures['head_rotation_degrees_offset_removed']:.2f}",
            f"{figures['blink_f1']:.2f}",
        )
    console.print(tracking)
    console.print(f"Roles right in {summary['tracking']['role_accuracy_per_frame']:.1%} of the frames.")
    console.print(
        f"Held-out frames above. New conversation: {summary['video']}; held-out frames beside the rendered ones: "
        f"{summary['comparison']}; all figures: {output / 'summary.json'} ({summary['seconds']['total']:.0f} s).\n"
        f"  ns-viewer --load-config {summary['config']}",
        highlight=False,
        soft_wrap=True,
    )
