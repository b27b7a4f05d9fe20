"""What processing measures: tracking, roles and labels against simulated truth over several seeds, real clips,
diarization of a recording, speed, and memory against the video's length.

    python benchmarks/processing.py --seeds 5
    python benchmarks/processing.py --clips a.mp4 b.mp4 --audio talk.wav --rttm talk.rttm --memory-seconds 60 600

Every part is kept in --folder when it is done and measured again only if its options or the code of `process` changed:
an interrupted run goes on where it stopped. Any option of processing can be tried: `--process.size 256`.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import tyro
from measuring import report, watched

import dialogue_nerfstudio
from dialogue_nerfstudio.cli.process import SHARES
from dialogue_nerfstudio.cli.progress import StageProgress
from dialogue_nerfstudio.conversation import (
    Conversation,
    DialogueError,
    FrameReader,
    VideoWriter,
    load_conversation,
    read_rttm,
)
from dialogue_nerfstudio.conversation.files import atomic_path, read_json, write_json
from dialogue_nerfstudio.process.pipeline import ProcessConfig, process_video
from dialogue_nerfstudio.process.quality import unusable_sentences

Fraction = Callable[[float], None]

MEASURED_ROOMS = ("process", "metrics", "conversation")
"""Packages whose code a kept result depends on."""

TARGETS = {
    "rotation_degrees": "2",
    "blink_f1": "0.9",
    "gaze_degrees": "5",
    "roles_per_frame": "0.95",
    "der": "0.08",
    "iou_head": "0.93",
    "iou_torso": "0.93",
    "iou_background": "0.93",
}


@dataclass
class ProcessingBenchmark:
    """Measure processing. Parts whose input is not given are left out; the simulated seeds need none."""

    seeds: int = 5
    """Simulated conversations, seeds 0, 1, …; 0 leaves them out."""
    seconds: float = 12.0
    """Length of each."""
    size: int = 256
    """Height and width of each simulated person's picture."""
    people: int = 2
    """How many talk in each."""
    clips: tuple[Path, ...] = ()
    """Real videos: lost frames and reprojection error."""
    audio: Optional[Path] = None
    """A recording to diarize; needs --rttm."""
    rttm: Optional[Path] = None
    """Who really speaks in it."""
    speed_video: Optional[Path] = None
    """Video to time, looped; "simulate" makes two people at 512²."""
    speed_seconds: float = 60.0
    """Length it is looped to."""
    memory_video: Optional[Path] = None
    """Video whose loops are watched; "simulate" takes a simulated one, on a canvas of 1920x1080."""
    memory_seconds: tuple[float, ...] = (30.0, 120.0)
    """Lengths it is looped to."""
    repeat: bool = False
    """Measure everything again; simulations are kept."""
    folder: Optional[Path] = None
    """Where simulations, processed conversations and results are kept; the user's cache folder if not given."""
    process: ProcessConfig = field(default_factory=ProcessConfig)
    """Options of processing, for everything but diarization."""


# Against the truth ----------------------------------------------------------------------------------------------------


def resample_labels(
    labels: np.ndarray, crop: tuple[float, float, float], wanted: tuple[float, float, float], size: int
) -> np.ndarray:
    """Labels of the square `crop` (left, top, side in pixels of the video) as seen in the square `wanted` of `size`
    pixels; what lies outside is IGNORED."""
    from dialogue_nerfstudio.metrics.labels import IGNORED

    def indices(start: float, other: float) -> np.ndarray:
        places = start + (np.arange(size) + 0.5) * wanted[2] / size
        return np.floor((places - other) * labels.shape[0] / crop[2]).astype(int)

    columns, rows = indices(wanted[0], crop[0]), indices(wanted[1], crop[1])
    inside = ((rows >= 0) & (rows < labels.shape[0]))[:, None] & (columns >= 0) & (columns < labels.shape[1])
    taken = labels[np.clip(rows, 0, labels.shape[0] - 1)[:, None], np.clip(columns, 0, labels.shape[1] - 1)]
    return np.where(inside, taken, IGNORED).astype(np.uint8)


def score_labels(truth: Conversation, found: Conversation, row: int, step: int = 5) -> dict[str, float]:
    """IoU of the parts over every `step`-th frame, and how much the maps and the true ones change from frame to
    frame."""
    from dialogue_nerfstudio.metrics.labels import confusion, label_change, part_ious

    true_person, person = truth.participants[row], found.participants[row]
    x, y, side, _ = true_person.source["crop"]
    x0, y0, x1, _ = person.source["crop"]
    counts = np.zeros((4, 4), np.int64)
    with truth.labels(true_person.id) as true_maps, found.labels(person.id) as maps:
        for index in range(0, min(len(true_maps), len(maps)), step):
            true = resample_labels(true_maps[index], (x, y, side), (x0, y0, x1 - x0), maps.width)
            counts += confusion(maps[index], true)
        change, true_change = label_change(maps.iterate()), label_change(true_maps.iterate())
    ious = {f"iou_{name}": value for name, value in part_ious(counts).items()}
    return {**ious, "label_change": change, "true_label_change": true_change}


def score_person(truth: Conversation, found: Conversation, row: int) -> dict[str, float]:
    """One participant's tracking and labels."""
    from dialogue_nerfstudio.metrics import tracking

    frames = min(truth.num_frames, found.num_frames)
    true, motion = truth.participants[row].motion, found.participants[row].motion
    poses = motion.head_pose[:frames], true.head_pose[:frames]
    rotations = [pose[:, :3] for pose in poses]
    blinks = tracking.blink_score(motion.blink[:frames], true.blink[:frames], truth.fps)
    open_eyes = (true.blink[:frames].max(1) < 0.3) & (motion.blink[:frames].max(1) < 0.5)
    gaze = motion.gaze[:frames], true.gaze[:frames], open_eyes
    record = found.tracking(found.participants[row].id)
    visible = record["visible"]
    return {
        "rotation_degrees": float(tracking.rotation_error_degrees(*rotations).mean()),
        "rotation_degrees_centred": float(tracking.rotation_error_degrees(*rotations, remove_offset=True).mean()),
        "translation_mm_centred": 1e3
        * float(tracking.translation_error(poses[0][:, 3:], poses[1][:, 3:], remove_offset=True).mean()),
        "blink_f1": blinks.f1,
        "blinks_matched": blinks.matched,
        "blinks_predicted": blinks.predicted,
        "blinks_true": blinks.true,
        "gaze_degrees": float(tracking.gaze_error_degrees(*gaze).mean()),
        "gaze_degrees_centred": float(tracking.gaze_error_degrees(*gaze, remove_offset=True).mean()),
        "lost_frames": int((~visible).sum()),
        "reprojection_rmse_px": float(np.sqrt(np.mean(record["reprojection_error"][visible] ** 2))),
        **score_labels(truth, found, row),
    }


def score(truth: Conversation, found: Conversation) -> dict[str, Any]:
    """A processed simulation against its truth.

    Raises:
        DialogueError: another number of people was found.
    """
    from dialogue_nerfstudio.conversation.roles import SpeechSegment
    from dialogue_nerfstudio.metrics.diarization import diarization_error
    from dialogue_nerfstudio.metrics.tracking import role_accuracy

    if len(truth.participants) != len(found.participants):
        raise DialogueError(
            f"{found.root} has {len(found.participants)} people, the simulation {len(truth.participants)}: "
            "give their number, --process.num-people."
        )
    frames = min(truth.num_frames, found.num_frames)
    people = [score_person(truth, found, row) for row in range(len(truth.participants))]
    roles = role_accuracy(found.speaking[:frames], truth.speaking[:frames])
    names = dict(zip(found.participant_ids, truth.participant_ids, strict=True))
    renamed = [SpeechSegment(s.start, s.end, names[s.speaker]) for s in found.segments]
    return {
        "people": people,
        **{name: float(np.mean([person[name] for person in people])) for name in people[0]},
        # Blinks of everybody together: a mean of two F1 would weigh the one who hardly blinks like the other.
        "blink_f1": pooled_f1(people),
        "roles_per_frame": roles["per_frame"],
        "roles_per_role": roles["per_role"],
        **diarization_error(truth.segments, renamed, frames / truth.fps),
    }


def pooled_f1(people: list[dict[str, Any]]) -> float:
    """F1 of the blinks of several people."""
    events = sum(person["blinks_predicted"] + person["blinks_true"] for person in people)
    return 2 * sum(person["blinks_matched"] for person in people) / events if events else 1.0


# Inputs ---------------------------------------------------------------------------------------------------------------


def simulation(folder: Path, seed: int, people: int, size: int, seconds: float, progress: Fraction) -> Path:
    """The folder of a simulated conversation, made once."""
    from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation

    root = folder / "simulated" / f"seed_{seed}_{people}_{size}_{seconds:g}"
    if not (root / "truth" / "conversation.json").is_file():
        config = SimulationConfig(seconds=seconds, size=size, num_people=people, seed=seed)
        simulate_conversation(config, root, lambda done, total: progress(done / total))
    return root


def looped(video: Path, target: Path, seconds: float) -> int:
    """Writes `video` as often in a row as fills `seconds`, without encoding it again; how often."""
    import av

    with av.open(str(video)) as source:
        # A loop is as long as its pictures; sound that is longer is cut, so that both stay together.
        picture = source.streams.video[0]
        length = float(picture.duration * picture.time_base) if picture.duration else source.duration / 1e6
    times = max(1, round(seconds / length))
    with atomic_path(target) as temporary, av.open(str(temporary), "w", format="matroska") as container:
        outputs: dict[int, Any] = {}
        written: dict[int, int] = {}
        for turn in range(times):
            with av.open(str(video)) as source:
                wanted = [*source.streams.video[:1], *source.streams.audio[:1]]
                outputs = outputs or {stream.index: container.add_stream_from_template(stream) for stream in wanted}
                for packet in source.demux(wanted):
                    if packet.dts is None or (packet.pts or 0) * packet.time_base >= length:
                        continue
                    shift = round(turn * length / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    # The silence an encoder puts before the first sound would lie on the end of the turn before.
                    if packet.dts <= written.get(packet.stream_index, packet.dts - 1):
                        continue
                    written[packet.stream_index] = packet.dts
                    packet.stream = outputs[packet.stream_index]
                    container.mux(packet)
    return times


def on_canvas(video: Path, target: Path, width: int = 1920, height: int = 1080) -> Path:
    """The pictures of a video, enlarged to fit a black canvas; its sound is left out."""
    import cv2

    if target.is_file():
        return target
    with FrameReader(video) as frames:
        scale = min(width / frames.width, height / frames.height)
        size = int(frames.width * scale) // 2 * 2, int(frames.height * scale) // 2 * 2
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        with VideoWriter(target, frames.fps, width, height, crf=18) as writer:
            for frame in frames.iterate():
                canvas = np.zeros((height, width, 3), np.uint8)
                canvas[top : top + size[1], left : left + size[0]] = cv2.resize(frame, size)
                writer.write(canvas)
    return target


# Work -----------------------------------------------------------------------------------------------------------------


def whole(progress: Fraction, shares: Mapping[str, float] = SHARES) -> Callable[[str, float, float], None]:
    """A stage's progress as the whole's."""
    done: dict[str, float] = {}

    def stage(name: str, part: float, total: float) -> None:
        done[name] = shares.get(name, 0.0) * part / total
        progress(min(sum(done.values()) / sum(shares.values()), 1.0))

    return stage


def processed(video: Path, output: Path, config: ProcessConfig, progress: Fraction) -> Conversation:
    """The video's conversation, made anew: code may have changed since the last time.

    A recording that is not fit for training is measured all the same.
    """
    shutil.rmtree(output, ignore_errors=True)
    return process_video([video], output, replace(config, allow_unusable=True), whole(progress))


def process_quietly(video: Path, output: Path, config: ProcessConfig) -> dict[str, Any]:
    """Processes without a display; the summary. Run in a process of its own."""
    processed(video, output, config, lambda fraction: None)
    return read_json(output / "process.json")


def measure_seed(options: ProcessingBenchmark, folder: Path, seed: int, progress: Fraction) -> dict[str, Any]:
    root = simulation(folder, seed, options.people, options.size, options.seconds, lambda f: progress(0.5 * f))
    truth = load_conversation(root / "truth")
    started = time.perf_counter()
    output = folder / "processed" / root.name
    found = processed(root / "video.mp4", output, options.process, lambda f: progress(0.5 + 0.45 * f))
    seconds = time.perf_counter() - started
    return {**score(truth, found), "times_real_time": truth.num_frames / truth.fps / seconds}


def measure_clip(options: ProcessingBenchmark, folder: Path, clip: Path, progress: Fraction) -> dict[str, Any]:
    output = folder / "processed" / clip.stem
    started = time.perf_counter()
    found = processed(clip, output, options.process, progress)
    seconds = time.perf_counter() - started
    summary = read_json(output / "process.json")
    from dialogue_nerfstudio.metrics.labels import label_change

    people = {}
    for name, entry in summary["participants"].items():
        with found.labels(name) as maps:
            change = label_change(maps.iterate())
        rmse = entry["reprojection_rmse_px"]
        people[name] = {
            "lost_frames": entry["lost_frames"],
            "reprojection_rmse_px": rmse,
            "reprojection_rmse_px_at_512": rmse * 512 / entry["picture"][0],
            "rotation_jitter_degrees": entry["rotation_jitter_degrees"],
            "blinks_per_second": entry["blinks_per_second"],
            "speaking_share": entry["speaking_share"],
            "label_change": change,
        }
    return {
        "frames": found.num_frames,
        "people": people,
        "unusable": unusable_sentences(summary["quality"]["findings"]),
        "times_real_time": found.num_frames / found.fps / seconds,
    }


def measure_diarization(options: ProcessingBenchmark, folder: Path, progress: Fraction) -> dict[str, Any]:
    from dialogue_nerfstudio.metrics.diarization import diarization_error
    from dialogue_nerfstudio.process.audio_features import SAMPLE_RATE, load_audio
    from dialogue_nerfstudio.process.diarization import diarize

    audio, reference = load_audio(options.audio), read_rttm(options.rttm)
    found = diarize(audio, SAMPLE_RATE, len({segment.speaker for segment in reference}))
    duration = len(audio) / SAMPLE_RATE
    return {f"collar_{c}": diarization_error(reference, found, duration, c) for c in (0.0, 0.25, 0.5)}


def measure_loop(
    options: ProcessingBenchmark, folder: Path, video: Path, seconds: float, part: str, progress: Fraction
) -> dict[str, Any]:
    """Time and memory of processing a video that repeats itself, in a process of its own."""
    silent = str(video) == "simulate" and part == "memory"
    if str(video) == "simulate":
        root = simulation(folder, 0, 2, 512, 8.0, lambda f: progress(0.3 * f))
        video = root / "video.mp4"
        if part == "memory":
            video = on_canvas(video, root / "video_1080p.mp4")
    loop = folder / "looped" / f"{video.stem}_{seconds:g}.mkv"
    times = looped(video, loop, seconds)
    config = replace(options.process, without_sound=silent or options.process.without_sound)
    output = folder / "processed" / f"{part}_{loop.stem}"
    begun = time.perf_counter()

    def look() -> None:
        # The process's own progress would take a pipe more; the stages it has finished tell enough.
        done = sum(SHARES.get(stamp.stem, 0.0) for stamp in (output / ".process").glob("*.json"))
        progress(min(0.3 + 0.7 * done / sum(SHARES.values()), 0.99))

    summary, took = watched(process_quietly, loop, output, config, look=look)
    length = summary["num_frames"] / summary["fps"]
    loop.unlink()
    shutil.rmtree(output)
    return {
        "video_seconds": length,
        "loops": times,
        "people": len(summary["participants"]),
        **took,
        "times_real_time": length / took["seconds"],
        "times_real_time_of_one_core": length / took["processor_seconds"],
        "stage_seconds": summary["seconds"],
        "wall_seconds_with_start": time.perf_counter() - begun,
    }


# All of it ------------------------------------------------------------------------------------------------------------


def code_hash() -> str:
    """Changes with the code that a result depends on."""
    root = Path(dialogue_nerfstudio.__file__).parent
    files = sorted(path for room in MEASURED_ROOMS for path in (root / room).rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*files, Path(__file__)])).hexdigest()


def jobs(options: ProcessingBenchmark, folder: Path) -> dict[str, tuple[float, Callable[[Fraction], dict], Any]]:
    """Everything to measure: name → seconds it may take, the work, and what else its result depends on."""
    found: dict[str, tuple[float, Callable[[Fraction], dict], Any]] = {}
    scale = options.seconds * options.people * (options.size / 256) ** 2
    for seed in range(options.seeds):
        found[f"seed {seed}"] = (
            6 * scale,
            lambda progress, seed=seed: measure_seed(options, folder, seed, progress),
            [options.seconds, options.size, options.people],
        )
    for clip in options.clips:
        found[f"clip {clip.stem}"] = (
            40.0,
            lambda progress, clip=clip: measure_clip(options, folder, clip, progress),
            str(clip.resolve()),
        )
    if options.audio is not None:
        found["diarization"] = (
            15.0,
            lambda progress: measure_diarization(options, folder, progress),
            [str(options.audio.resolve()), str(options.rttm.resolve())],
        )
    loops = [("speed", options.speed_video, options.speed_seconds)]
    loops += [("memory", options.memory_video, seconds) for seconds in options.memory_seconds]
    for part, video, seconds in loops:
        if video is not None:
            found[f"{part} {seconds:g} s"] = (
                3 * seconds,
                lambda progress, v=video, s=seconds, p=part: measure_loop(options, folder, v, s, p, progress),
                [str(video), seconds],
            )
    return found


def measure(options: ProcessingBenchmark) -> dict[str, Any]:
    """Everything that was asked for, from what is kept where nothing changed.

    Raises:
        DialogueError: a file is missing, an option out of range, or a recording cannot be processed.
    """
    from rich.console import Console

    from dialogue_nerfstudio.nerf.frame_store import default_cache_folder

    if (options.audio is None) != (options.rttm is None):
        raise DialogueError("--audio and --rttm belong together: the recording, and who really speaks in it.")
    simulate = Path("simulate")
    videos = [v for v in (options.speed_video, options.memory_video) if v is not None and v != simulate]
    for path in [*options.clips, *videos, *filter(None, (options.audio, options.rttm))]:
        if not path.is_file():
            raise DialogueError(f"There is no file {path}.")
    folder = options.folder or default_cache_folder() / "benchmarks" / "processing"
    chosen = jobs(options, folder)
    code, settings = code_hash(), asdict(options.process)
    figures: dict[str, Any] = {}
    with StageProgress({name: cost for name, (cost, _, _) in chosen.items()}, Console(stderr=True)) as progress:
        for name, (_, work, inputs) in chosen.items():
            key = hashlib.sha256(json.dumps([code, settings, inputs], default=str).encode()).hexdigest()[:12]
            kept = folder / "results" / f"{name.replace(' ', '_')}_{key}.json"
            if options.repeat or not kept.is_file():
                write_json(kept, work(lambda fraction, name=name: progress(name, 0.999 * fraction, 1.0)))
            figures[name] = read_json(kept)
            progress(name, 1.0, 1.0)
    seeds = [figures[name] for name in chosen if name.startswith("seed")]
    if seeds:
        figures["simulated"] = over_seeds(seeds)
    figures["options"] = {"seconds": options.seconds, "size": options.size, "people": options.people, **settings}
    return figures


def over_seeds(seeds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean, worst and best of every figure, by their names' target direction."""
    names = [name for name, value in seeds[0].items() if isinstance(value, (int, float))]
    result = {}
    for name in names:
        values = [seed[name] for seed in seeds]
        result[name] = {"mean": float(np.mean(values)), "lowest": min(values), "highest": max(values)}
    everybody = [person for seed in seeds for person in seed["people"]]
    result["blink_f1"]["pooled"] = pooled_f1(everybody)
    return result


def rows(figures: dict[str, Any]) -> list[list[Any]]:
    """The table: figure, value, range, target."""
    lines: list[list[Any]] = []
    for name, values in figures.get("simulated", {}).items():
        shown = values.get("pooled", values["mean"])
        span = f"{values['lowest']:.4g} … {values['highest']:.4g}"
        lines.append([f"simulated {name}", shown, span, TARGETS.get(name, "")])
    for name, entry in figures.items():
        if name.startswith("clip "):
            for person, values in entry["people"].items():
                where = f"{name}, {person}"
                lines.append([f"{where}: frames lost", values["lost_frames"], "", "0"])
                lines.append([f"{where}: reprojection rmse at 512²", values["reprojection_rmse_px_at_512"], "", "1.6"])
                lines.append([f"{where}: label change", values["label_change"], "", ""])
            lines.append([f"{name}: usable", "no" if entry["unusable"] else "yes", "", "yes"])
        if name.startswith(("speed ", "memory ")):
            lines.append([f"{name}: times real time", entry["times_real_time"], "", "2" if name[0] == "s" else ""])
            lines.append([f"{name}: peak memory, MiB", entry["peak_mib"], "", "3072" if name[0] == "m" else ""])
    for collar, values in figures.get("diarization", {}).items():
        lines.append([f"diarization, {collar}", values["der"], "", "0.18" if collar == "collar_0.0" else ""])
    return lines


if __name__ == "__main__":
    try:
        measured = measure(tyro.cli(ProcessingBenchmark))
    except DialogueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    report(measured, ["figure", "measured", "range", "target"], rows(measured))
