"""What the benchmarks share: a conversation to work on, a training loop to time, and memory."""

import multiprocessing
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch

from dialogue_nerfstudio.conversation import Conversation, load_conversation, save_conversation
from dialogue_nerfstudio.conversation.acoustics import mel_features
from dialogue_nerfstudio.conversation.files import write_npz
from dialogue_nerfstudio.conversation.roles import SpeechSegment
from dialogue_nerfstudio.conversation.simulate import SimulationConfig, simulate_conversation
from dialogue_nerfstudio.conversation.split import split_frames
from dialogue_nerfstudio.conversation.video import LabelWriter, VideoWriter
from dialogue_nerfstudio.nerf.config import method
from dialogue_nerfstudio.nerf.frame_store import default_cache_folder
from dialogue_nerfstudio.nerf.pipeline import DialoguePipeline
from dialogue_nerfstudio.nerf.trainer import DialogueTrainerConfig


def device() -> str:
    """Where everything runs: cuda where there is a GPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def synchronise() -> None:
    """Waits for the GPU, if there is one, so that a clock can be read."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Conversations --------------------------------------------------------------------------------------------------------


def conversation_or_sample(given: Optional[Path], seconds: float = 12.0, size: int = 128, people: int = 2) -> Path:
    """The given folder; without one a simulated conversation, its true motion as if it had been tracked perfectly.

    It is made once and kept in the user's cache folder.
    """
    if given is not None:
        return given
    root = default_cache_folder() / "benchmarks" / f"sample_{people}_{size}_{seconds:g}"
    if not (root / "truth" / "features" / "mel.npz").is_file():
        print(f"simulating {seconds:g} s of {people} people in {root}", file=sys.stderr)
        simulate_conversation(SimulationConfig(seconds=seconds, size=size, num_people=people), root)
        conversation = load_conversation(root / "truth")
        samples, rate = conversation.audio()
        mel = mel_features(samples, rate, conversation.num_frames, conversation.fps)
        write_npz(root / "truth" / "features" / "mel.npz", features=mel)
    return root / "truth"


def enlarged(source: Path, folder: Path, times: int = 1, people: Optional[int] = None) -> Path:
    """The conversation of `source` played `times` times over, with `people` participants, copies where it has fewer.

    A long recording of many people for measuring what length and company cost; what it shows repeats itself.
    """
    conversation = load_conversation(source)
    originals = conversation.participants
    chosen = [originals[index % len(originals)] for index in range(people or len(originals))]
    frames = np.tile(np.arange(conversation.num_frames), times)
    participants = []
    for index, person in enumerate(chosen):
        copy = replace(person, id=f"p{index}", motion=person.motion.take(frames))
        _loop_media(conversation, person.id, folder / "participants" / copy.id, times)
        participants.append(copy)
    write_npz(folder / "features" / "mel.npz", features=conversation.feature("mel")[frames])
    shutil.copy(conversation.path("audio.wav"), folder / "audio.wav")
    duration = conversation.num_frames / conversation.fps
    segments = [
        SpeechSegment(segment.start + turn * duration, segment.end + turn * duration, copy.id)
        for turn in range(times)
        for original, copy in zip(chosen, participants, strict=True)
        for segment in conversation.segments
        if segment.speaker == original.id
    ]
    train_frames, eval_frames = split_frames(len(frames), 0.1)
    longer = Conversation(
        num_frames=len(frames),
        participants=participants,
        segments=segments,
        train_frames=train_frames,
        eval_frames=eval_frames,
        fps=conversation.fps,
    )
    save_conversation(longer, folder)
    return folder


def _loop_media(conversation: Conversation, participant_id: str, folder: Path, times: int) -> None:
    folder.mkdir(parents=True)
    shutil.copy(conversation.participant_path(participant_id, "background.png"), folder / "background.png")
    with conversation.frames(participant_id) as pictures, conversation.labels(participant_id) as labels:
        size = pictures.width, pictures.height
        with VideoWriter(folder / "video.mp4", conversation.fps, *size) as video:
            for _ in range(times):
                for frame in pictures.iterate():
                    video.write(frame)
        with LabelWriter(folder / "labels.mkv", conversation.fps, *size) as video:
            for _ in range(times):
                for frame in labels.iterate():
                    video.write(frame)


# Training -------------------------------------------------------------------------------------------------------------


class TrainingLoop:
    """The steps of `ns-train dialogue-nerf` without its log files and viewer, one by one, to be timed.

    Args:
        data: a conversation folder.
        steps: the run's length, over which learning rates decay.
        change: called with the trainer's config to change it first.
    """

    def __init__(
        self, data: Path, steps: int = 1000, change: Callable[[DialogueTrainerConfig], None] = lambda config: None
    ):
        config = method(cuda=torch.cuda.is_available())
        config.pipeline.datamanager.data = data
        change(config)
        torch.manual_seed(0)
        self.pipeline = DialoguePipeline(config.pipeline, device=device(), test_mode="val")
        self._optimizers, self._schedulers = [], []
        for name, parameters in self.pipeline.get_param_groups().items():
            group = config.optimizers[name]
            group["scheduler"].max_steps = steps
            self._optimizers.append(group["optimizer"].setup(params=parameters))
            self._schedulers.append(group["scheduler"].setup().get_scheduler(self._optimizers[-1], 0.0))
        self.done = 0

    def step(self) -> None:
        self.pipeline.train()
        for optimizer in self._optimizers:
            optimizer.zero_grad()
        _, losses, _ = self.pipeline.get_train_loss_dict(self.done)
        sum(losses.values()).backward()
        for optimizer, scheduler in zip(self._optimizers, self._schedulers, strict=True):
            optimizer.step()
            scheduler.step()
        self.pipeline.model.update_occupancy(self.done)
        self.done += 1


def held_out_psnr(pipeline: DialoguePipeline, count: Optional[int] = None) -> float:
    """Mean full-frame PSNR, dB, of `count` evenly spread held-out frames of everybody; all of them if None."""
    training = pipeline.training
    pipeline.eval()
    loader = pipeline.datamanager.fixed_indices_eval_dataloader
    total = len(loader.input_dataset)
    chosen = np.unique(np.linspace(0, total - 1, min(count or total, total)).round().astype(int))
    values = []
    with torch.no_grad():
        for index in chosen.tolist():
            camera, batch = loader.get_camera(index)
            rgb = pipeline.model.get_outputs_for_camera(camera)["rgb"].clamp(0.0, 1.0)
            error = (rgb - batch["image"].to(rgb.device)).square().mean()
            values.append(float(-10.0 * torch.log10(error.clamp_min(1e-10))))
    pipeline.train(training)
    return float(np.mean(values))


# Time and memory ------------------------------------------------------------------------------------------------------


def interleaved_seconds(actions: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, float]:
    """Median seconds of each action; repeats take turns, so that a machine that is busy for a moment slows all."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(warm_up):
        for action in actions.values():
            action()
    for _ in range(repeats):
        for name, action in actions.items():
            synchronise()
            start = time.perf_counter()
            action()
            synchronise()
            seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory() -> dict[str, float]:
    """Peak of this process in MiB: `resident`, and on a GPU `gpu`, what torch allocated."""
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage would also count the parent that this process was spawned from.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        peak = {"resident": int(line.split()[1]) / 2**10}
    else:
        unit = 1 if sys.platform == "darwin" else 2**10
        peak = {"resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20}
    if torch.cuda.is_available():
        peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20
    return peak


def _answer(send: Callable[[Any], None], threads: int, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(threads)
    send(function(*arguments))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of a module returns from a fresh process, whose peak memory is its own.

    Raises:
        RuntimeError: it failed; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender.send, torch.get_num_threads(), function, arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} failed, see above") from error
    finally:
        process.join()
