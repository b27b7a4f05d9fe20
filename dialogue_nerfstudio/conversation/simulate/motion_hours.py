"""Simulates hours of motion-only conversations into shards, on several processes, and goes on where it stopped.

Which people talk in conversation k, what it holds and which split it belongs to depend on the seed and k alone, neither
on how many hours are asked for nor on the number of processes. So the same command with more hours extends a folder.
"""

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import numpy as np

from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import remove_temporaries
from dialogue_nerfstudio.conversation.motion import EXPRESSION_BASIS, EXPRESSION_NAMES
from dialogue_nerfstudio.conversation.motion_shards import (
    MANIFEST_NAME,
    MotionManifest,
    ShardEntry,
    Split,
    read_manifest,
    shard_fingerprint,
    write_manifest,
    write_shard,
)
from dialogue_nerfstudio.conversation.simulate.answering_heads import FPS
from dialogue_nerfstudio.conversation.simulate.motion_only import simulate_motion
from dialogue_nerfstudio.conversation.simulate.styles import PersonStyle, draw_style

RECIPE = 2
"""Raised whenever the same options give other conversations, so that folders never mix two simulations."""

_CYCLE = 8
_UNSEEN_PLACE, _EVAL_PLACE = 5, 6
"""Of every eight conversations one is held out of people that train knows, one of people that it does not."""


@dataclass
class MotionHoursConfig:
    """What to simulate."""

    hours: float = 1.0
    """How much conversation in all."""
    num_people: int = 12
    """How many people there are; a sixth of them, at least one conversation's worth, appears in the split `unseen` only
    where there are enough."""
    people_per_conversation: int = 2
    """How many of them talk with each other at a time."""
    conversation_seconds: float = 180.0
    """Length of a conversation, which is a shard."""
    seed: int = 0
    """Draws the people and everything they do."""

    def validate(self) -> None:
        """Refuse what cannot be simulated.

        Raises:
            DialogueError: naming the option and the values it takes.
        """
        if not 0.0 < self.hours <= 10_000.0:
            raise DialogueError(f"hours is {self.hours:g}, but must be above 0 and at most 10000.")
        if not 1 <= self.people_per_conversation <= 8:
            raise DialogueError(f"people-per-conversation is {self.people_per_conversation}, but must be 1 to 8.")
        if not self.people_per_conversation <= self.num_people <= 100_000:
            raise DialogueError(
                f"num-people is {self.num_people}, but must be at least the {self.people_per_conversation} of a "
                "conversation and at most 100000."
            )
        if not 10.0 <= self.conversation_seconds <= 1800.0:
            raise DialogueError(f"seconds is {self.conversation_seconds:g}, but must be 10 to 1800.")
        if self.hours * 3600.0 < _CYCLE * 10.0:
            raise DialogueError(
                f"hours is {self.hours:g}, but a data set has at least {_CYCLE} conversations of 10 s, "
                f"{_CYCLE * 10.0 / 3600.0:.3f} hours."
            )

    @property
    def num_frames(self) -> int:
        """Frames of each conversation: shorter ones where the hours are too few for eight."""
        # A multiple of five frames is a whole number of mel steps.
        return 5 * round(min(self.conversation_seconds, self.hours * 3600.0 / _CYCLE) * FPS / 5)

    @property
    def num_conversations(self) -> int:
        return max(_CYCLE, round(self.hours * 3600.0 * FPS / self.num_frames))

    @property
    def num_unseen(self) -> int:
        """People of the split `unseen`."""
        unseen = max(self.people_per_conversation, self.num_people // 6)
        return unseen if self.num_people - unseen >= 2 * self.people_per_conversation else 0

    @property
    def options(self) -> Dict[str, Any]:
        """What a conversation depends on beside its number."""
        return {
            "recipe": RECIPE,
            "num_people": self.num_people,
            "people_per_conversation": self.people_per_conversation,
            "num_frames": self.num_frames,
            "seed": self.seed,
        }

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(self.options, sort_keys=True).encode()).hexdigest()[:16]


def plan_conversations(config: MotionHoursConfig) -> List[ShardEntry]:
    """Who talks with whom, and what is held out."""
    together, known = config.people_per_conversation, config.num_people - config.num_unseen
    entries: List[ShardEntry] = []
    trained: Set[int] = set()
    counts: Dict[Split, int] = {"train": 0, "eval": 0, "unseen": 0}
    for number in range(config.num_conversations):
        place = number % _CYCLE
        split: Split = "train"
        if place == _EVAL_PLACE:
            split = "eval"
        elif place == _UNSEEN_PLACE and config.num_unseen:
            split = "unseen"
        if split == "train":
            people = _group(np.arange(known), together, counts[split], [config.seed, 1])
            trained.update(people)
        elif split == "eval":
            people = _group(np.array(sorted(trained)), together, counts[split], [config.seed, 2])
        else:
            people = _group(np.arange(known, config.num_people), together, counts[split], [config.seed, 3])
        counts[split] += 1
        ids = tuple(f"person-{person:04d}" for person in people)
        entries.append(ShardEntry(f"shard-{number:05d}", ids, split, config.num_frames))
    return entries


def _group(people: np.ndarray, size: int, number: int, seed: List[int]) -> Tuple[int, ...]:
    """The number-th group: everybody is in one before anybody is in another, as far as the size divides."""
    groups = len(people) // size
    order = np.random.default_rng([*seed, number // groups]).permutation(people)
    first = number % groups * size
    return tuple(int(person) for person in order[first : first + size])


def simulate_motion_hours(
    config: MotionHoursConfig,
    output: Path,
    workers: Optional[int] = None,
    progress: Optional[Callable[[int, int], None]] = None,
) -> MotionManifest:
    """Simulates into a folder; conversations that are there already, whole and of the same options, are kept.

    Args:
        config: What to simulate.
        output: Folder of `motion_shards`.
        workers: How many processes; None for one a core.
        progress: Called with (conversations done, in all).

    Raises:
        DialogueError: an option out of range, a folder made with other options, a full disk.
    """
    config.validate()
    if workers is not None and workers < 1:
        raise DialogueError(f"workers is {workers}, but must be at least 1.")
    output = Path(output)
    entries = plan_conversations(config)
    _check_folder(config, output)
    output.mkdir(parents=True, exist_ok=True)
    remove_temporaries(output)
    missing = [
        number
        for number, entry in enumerate(entries)
        if shard_fingerprint(output / entry.file_name) != config.fingerprint
    ]
    done = len(entries) - len(missing)
    report = progress or (lambda done, total: None)
    report(done, len(entries))
    for _ in _simulated(config, entries, missing, output, min(workers or os.cpu_count() or 1, max(len(missing), 1))):
        done += 1
        report(done, len(entries))
    everybody = [draw_style(person, config.seed) for person in range(config.num_people)]
    manifest = MotionManifest(
        seed=config.seed,
        fps=FPS,
        expression_basis=EXPRESSION_BASIS,
        expression_names=EXPRESSION_NAMES,
        people={style.id: style.to_json() for style in everybody},
        conversations=entries,
        options=config.options,
    )
    write_manifest(output, manifest)
    return manifest


def _simulated(
    config: MotionHoursConfig, entries: List[ShardEntry], missing: List[int], output: Path, workers: int
) -> Iterator[None]:
    """Simulates what is missing; yields as each is written."""
    if workers == 1:
        for number in missing:
            simulate_shard(config, entries[number], number, output)
            yield
        return
    with (
        _one_thread_each(),
        ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_begin_worker) as pool,
    ):
        futures = [pool.submit(simulate_shard, config, entries[number], number, output) for number in missing]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BrokenProcessPool as error:
            raise DialogueError(
                f"one of the {workers} processes that simulate into {output} was killed, perhaps for want of memory; "
                "run the same command again, it goes on where it stopped, with fewer --workers if need be."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes begun within compute on one thread each: there is one for every core already."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _begin_worker() -> None:
    # Ctrl-C goes to all of a terminal's processes; the one that started us decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """An orphan would wait for work for ever."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


_OPTION_NAMES = {
    "recipe": "the program's version",
    "num_people": "--num-people",
    "people_per_conversation": "--people-per-conversation",
    "num_frames": "--seconds, or fewer --hours than eight conversations need",
    "seed": "--seed",
}


def _check_folder(config: MotionHoursConfig, output: Path) -> None:
    """Refuses a folder that was made with other options."""
    if (output / MANIFEST_NAME).exists():
        options = read_manifest(output).options
        different = [_OPTION_NAMES[name] for name, value in config.options.items() if options.get(name) != value]
    else:
        prints = {shard_fingerprint(path) for path in output.glob("shard-*.safetensors")} - {None}
        different = ["the options"] if prints - {config.fingerprint} else []
    if different:
        raise DialogueError(
            f"{output} holds motion that was simulated otherwise ({', '.join(different)}); give the same options, or "
            "another output folder."
        )


def simulate_shard(config: MotionHoursConfig, entry: ShardEntry, number: int, output: Path) -> None:
    """Simulates one conversation and writes it."""
    styles: List[PersonStyle] = [draw_style(int(person.rpartition("-")[2]), config.seed) for person in entry.people]
    talk = simulate_motion(styles, entry.num_frames, [config.seed, 4, number])
    write_shard(
        output / entry.file_name,
        {
            "head_pose": talk.heads.head_pose,
            "expected_head_pose": talk.heads.expected,
            "expected_from_sound": talk.heads.from_sound,
            "expected_from_partner": talk.heads.from_partner,
            "expression": talk.expression,
            "blink": talk.blink,
            "gaze": talk.gaze,
            "prosody": talk.prosody,
            "speaking": talk.speaking,
            "mel": talk.mel,
        },
        config.fingerprint,
    )
