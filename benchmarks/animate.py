"""Animation from sound: frames of motion a second, seconds to the first picture, memory over hours, steadiness.

    python benchmarks/animate.py --load-config outputs/…/config.yml outputs/…/config.yml --audio talk.wav

The configurations are those of `ns-dialogue animate`: motion models, and avatars. Without avatars those of a simulated
conversation are trained for `iterations` steps; without motion models people move by habits alone (their recorded
poses), which says what everything but the models takes. The sound is repeated to the lengths asked for. Everything is
loaded, and one picture rendered, before the clock starts.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Literal, Optional

import numpy as np
import soundfile
import torch
import tyro
from common import conversation_or_sample
from measuring import report, watched

from dialogue_nerfstudio.cli.animate import load_motion_model, people_of, sort_configs
from dialogue_nerfstudio.cli.live_render import render_while_generating
from dialogue_nerfstudio.cli.training import train_avatars
from dialogue_nerfstudio.conversation.conversation import Conversation
from dialogue_nerfstudio.conversation.roles import SpeechSegment, write_rttm
from dialogue_nerfstudio.nerf.load import load_pipeline_for_rendering, read_config
from dialogue_nerfstudio.output.animation import AnimationOptions, SoundAnimation, recorded_characters
from dialogue_nerfstudio.output.driving import Hearing
from dialogue_nerfstudio.process.audio_features import load_audio

SAMPLE_RATE = 16_000


@dataclass
class AnimateBenchmark:
    """Measure animation from sound."""

    load_config: tuple[Path, ...] = ()
    """config.yml of motion models and of avatars."""
    audio: Optional[Path] = None
    """A sound in which people talk; the avatars' own recording's if not given."""
    motion_seconds: float = 60.0
    """Length of what frames a second and steadiness are measured on."""
    first_frame_seconds: tuple[float, ...] = (10.0, 30.0)
    """Lengths of the sounds of which the first picture is waited for."""
    first_frame_roles: tuple[Literal["rttm", "voices"], ...] = ("rttm", "voices")
    """How roles are found there: given, or voices told apart."""
    memory_seconds: tuple[float, ...] = (60.0, 600.0, 10_800.0)
    """Lengths of the sounds over which memory is watched, each in a process of its own; with none, it is not."""
    memory_roles: Literal["rttm", "voices"] = "voices"
    """How roles are found there."""
    resolution: int = 128
    """Height of the pictures."""
    iterations: int = 300
    """Training steps of avatars where none are given."""
    seed: int = 0
    """Of what is generated."""
    repeats: int = 3
    """Of each time; the median counts."""
    threads: Optional[int] = None
    """torch's threads; all cores if not given."""


def looped_sound(source: Path, target: Path, seconds: float) -> Path:
    """The sound over and over, as 16 kHz WAV, written piece by piece."""
    sound = load_audio(source)
    left = round(seconds * SAMPLE_RATE)
    with soundfile.SoundFile(target, "w", SAMPLE_RATE, 1) as file:
        while left > 0:
            file.write(sound[:left])
            left -= len(sound)
    return target


def turns(path: Path, ids: list[str], seconds: float, turn: float = 5.0) -> Path:
    """Roles in which people speak in turn."""
    count = int(np.ceil(seconds / turn))
    segments = [SpeechSegment(k * turn, min((k + 1) * turn, seconds), ids[k % len(ids)]) for k in range(count)]
    write_rttm(path, segments)
    return path


def animate(
    configs: tuple[Path, ...], sound: Path, folder: Path, rttm: Optional[Path], seed: int, models: Any = None
) -> SoundAnimation:
    """An animation that is ready to run."""
    avatars, motion = sort_configs(configs)
    conversation = people_of(avatars, None)
    models = [load_motion_model(path) for path in motion] if models is None else models
    return SoundAnimation(
        sound, folder, recorded_characters(conversation), models, "people", AnimationOptions(rttm=rttm, seed=seed)
    )


def animated_alone(configs: tuple[Path, ...], sound: Path, folder: Path, rttm: Optional[Path]) -> dict[str, Any]:
    """What a process of its own does whose memory is watched."""
    torch.set_num_threads(1)
    record = animate(configs, sound, folder, rttm, 0).run()
    return {"stage_seconds": record["stage_seconds"], "frames_per_second": record["generation"]["frames_per_second"]}


def first_picture(
    pipeline: Any, conversation: Conversation, feature: str, animation: SoundAnimation, resolution: int
) -> tuple[float, float]:
    """Seconds from the sound file to the first rendered picture of everybody, by the clock and of the processor."""

    class Seen(Exception):
        """The picture is there: nothing more is needed."""

    def consume(blocks: Iterator[Any]) -> None:
        next(
            render_while_generating(
                pipeline, conversation, blocks, animation.heard, Hearing(feature), animation.ids, resolution
            )
        )
        raise Seen

    start, worked = time.perf_counter(), time.process_time()
    try:
        animation.run(consume)
    except Seen:
        return time.perf_counter() - start, time.process_time() - worked
    raise RuntimeError("there was no picture")


def measure(options: AnimateBenchmark) -> dict[str, Any]:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as made:
        return _measure(options, Path(made))


def _measure(options: AnimateBenchmark, folder: Path) -> dict[str, Any]:
    configs = tuple(options.load_config)
    if sort_configs(configs)[0] is None:
        data = conversation_or_sample(None)
        configs = (*configs, train_avatars(data, folder / "outputs", options.iterations, 0, options.resolution))
    avatars, motion = sort_configs(configs)
    conversation = people_of(avatars, None)
    source = options.audio or conversation.path("audio.wav")
    models = [load_motion_model(path) for path in motion]
    figures: dict[str, Any] = {
        "models": [model.named.name for model in models],
        "people": len(conversation.participants),
        "threads": torch.get_num_threads(),
    }

    sound = looped_sound(source, folder / "motion.wav", options.motion_seconds)
    rttm = turns(folder / "motion.rttm", conversation.participant_ids, options.motion_seconds)
    records = [
        animate(configs, sound, folder / f"motion{k}", rttm, options.seed, models).run() for k in range(options.repeats)
    ]
    last = records[-1]
    figures["motion"] = {
        "seconds_of_sound": options.motion_seconds,
        "frames_per_second": float(np.median([r["generation"]["frames_per_second"] for r in records])),
        "frames_per_cpu_second": float(
            np.median([r["num_frames"] / max(r["generation"]["cpu_seconds"], 1e-9) for r in records])
        ),
        "steadiness": {name: person["head_motion"] for name, person in last["participants"].items()},
    }

    _, pipeline = load_pipeline_for_rendering(avatars)
    feature = read_config(avatars).pipeline.datamanager.dataparser.audio_feature
    figures["first_picture"] = []
    for seconds in options.first_frame_seconds:
        sound = looped_sound(source, folder / f"first{seconds:g}.wav", seconds)
        given = turns(folder / "first.rttm", conversation.participant_ids, seconds)
        for method in options.first_frame_roles:
            rttm, times = given if method == "rttm" else None, []
            # The first one compiles, and is not counted.
            for turn in range(options.repeats + 1):
                target = folder / f"first_{method}_{seconds:g}_{turn}"
                animation = animate(configs, sound, target, rttm, options.seed, models)
                times.append(first_picture(pipeline, conversation, feature, animation, options.resolution))
            clock, processor = np.median(times[1:], axis=0).tolist()
            figures["first_picture"].append(
                {"seconds_of_sound": seconds, "roles": method, "seconds": clock, "processor_seconds": processor}
            )

    figures["memory"] = []
    for seconds in options.memory_seconds:
        sound = looped_sound(source, folder / "long.wav", seconds)
        rttm = None
        if options.memory_roles == "rttm":
            rttm = turns(folder / "long.rttm", conversation.participant_ids, seconds)
        result, took = watched(animated_alone, configs, sound, folder / f"long{seconds:g}", rttm)
        figures["memory"].append({"seconds_of_sound": seconds, "roles": options.memory_roles, **took, **result})
    return figures


def main(options: AnimateBenchmark) -> None:
    figures = measure(options)
    rows: list[list[Any]] = [
        ["frames of motion a second", options.motion_seconds, "given", figures["motion"]["frames_per_second"]]
    ]
    for name, unit, found in (("first_picture", "s", "seconds"), ("memory", "MiB", "peak_mib")):
        rows += [
            [f"{name.replace('_', ' ')}, {unit}", row["seconds_of_sound"], row["roles"], row[found]]
            for row in figures[name]
        ]
    report(figures, ["figure", "seconds of sound", "roles", "value"], rows)


if __name__ == "__main__":
    main(tyro.cli(AnimateBenchmark, description=__doc__))
