"""Many tasks, one after the other or side by side: each is done once, or it is said why not.

`run_tasks` hands tasks to an engine, counts tries, and keeps the manifest; `process_many` does so for recordings, each
of which becomes a conversation in a folder of its own. What is done, with the same files, options and program, is not
begun again; what was killed goes on after its last finished stage.
"""

import hashlib
import json
import time
from collections import deque
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Deque, Dict, List, Literal, Optional, Sequence, Tuple

import numpy as np

import dialogue_nerfstudio
from dialogue_nerfstudio.conversation.errors import DialogueError
from dialogue_nerfstudio.conversation.files import remove_temporaries
from dialogue_nerfstudio.process.dub import DubConfig, check_dub_options, dub_task, find_speakers
from dialogue_nerfstudio.process.engines import Engine, Event, LocalEngine, RayEngine, Report, Work
from dialogue_nerfstudio.process.manifest import Entry, Manifest
from dialogue_nerfstudio.process.pipeline import ProcessConfig
from dialogue_nerfstudio.process.recordings import Recording, output_names, process_recording
from dialogue_nerfstudio.process.stages import source_fingerprint

LOG_FOLDER = ".many"
"""Beside the conversations: tracebacks of failures, and what the workers print."""

WAIT_SECONDS = 0.5
"""How often the display is told at least."""


@dataclass
class ManyConfig:
    """How many tasks are run."""

    engine: Literal["local", "ray"] = "local"
    """local: processes of this machine; ray: Ray, here or on a cluster."""
    workers: Optional[int] = None
    """How many at once; None for one for every two cores."""
    ray_address: Optional[str] = None
    """A running cluster: HOST:PORT, ray://HOST:PORT or auto; None starts Ray on this machine."""
    retries: int = 1
    """How often one that ended without a sentence (killed, out of memory, a bug) is tried again."""
    again: bool = False
    """Try those again that were refused before."""


Watch = Callable[[Dict[str, Entry], Dict[str, Tuple[str, float]]], None]
"""Told all entries, and stage and fraction of those that run."""


def check_many_options(config: ManyConfig) -> None:
    """Raises:
    DialogueError: an option is out of its range.
    """
    if config.workers is not None and config.workers < 1:
        raise DialogueError(f"--workers must be at least 1, not {config.workers}.")
    if config.retries < 0:
        raise DialogueError(f"--retries must not be negative, not {config.retries}.")
    if config.ray_address is not None and config.engine != "ray":
        raise DialogueError("--ray-address is of a Ray cluster: add --engine ray, or leave it out.")


def make_engine(work: Work, output: Path, config: ManyConfig) -> Engine:
    """The engine that the options ask for; nothing runs before it is entered.

    Raises:
        DialogueError: Ray is asked for and not installed.
    """
    if config.engine == "ray":
        return RayEngine(work, config.workers, config.ray_address)
    return LocalEngine(work, config.workers, Path(output) / LOG_FOLDER / "workers.log")


def process_many(
    recordings: Sequence[Recording],
    output: Path,
    config: ProcessConfig,
    many: ManyConfig,
    watch: Watch = lambda entries, running: None,
) -> List[Entry]:
    """Turns each recording into a conversation in a folder of its own under `output`.

    Raises:
        DialogueError: about options, the engine, or another run in the same folder; what is wrong with a recording is
            its entry's reason.
    """
    check_many_options(many)
    for name, value in (("audio", config.audio), ("rttm", config.rttm)):
        if value:
            raise DialogueError(
                f"--{name} is of one recording: put the file beside its video, with the same name, or leave out --each."
            )
    output = Path(output)
    engine = make_engine(process_task, output, many)
    with Manifest(output) as manifest:
        sources = {str(recording.source.resolve()): recording for recording in recordings}
        names = output_names(recordings, {entry.source: entry.output for entry in manifest.entries.values()})
        wanted = [
            Entry(source, names[source], recording_fingerprint(recording, config))
            for source, recording in sources.items()
        ]
        tasks = {
            source: {"recording": recording, "output": str(output.resolve() / names[source]), "config": config}
            for source, recording in sources.items()
        }
        return run_tasks(manifest, wanted, tasks, engine, many, watch)


def recording_fingerprint(recording: Recording, config: ProcessConfig) -> str:
    """Changes with the files, the options and the program."""
    try:
        files = source_fingerprint(recording.files)
    except OSError:
        # A link to nowhere is refused when its turn comes, and looked at again in every run.
        files = [str(path) for path in recording.files]
    content = [files, asdict(config), dialogue_nerfstudio.__version__]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def process_task(task: Dict[str, Any], report: Report) -> Dict[str, Any]:
    """The work on one recording, in a worker."""
    output = Path(task["output"])
    remove_temporaries(output)
    return {"conversations": process_recording(task["recording"], output, task["config"], report)}


def dub_many(
    folders: Sequence[Path],
    output: Path,
    count: int,
    seed: int,
    config: DubConfig,
    many: ManyConfig,
    watch: Watch = lambda entries, running: None,
) -> List[Entry]:
    """Makes dubbed conversations, dub-0000 and on; number i is the same whatever `count` is.

    Raises:
        DialogueError: about options, sources or the engine; what is wrong with one of them is its entry's reason.
    """
    check_many_options(many)
    check_dub_options(config)
    if count < 1 or seed < 0:
        raise DialogueError(f"--count must be at least 1 and --seed not negative, not {count} and {seed}.")
    output, speakers = Path(output), find_speakers(folders)
    engine = make_engine(dub_task, output, many)
    wanted, tasks = [], {}
    for number in range(count):
        name = f"dub-{number:04d}"
        chosen = np.random.default_rng([seed, number, len(speakers)]).choice(len(speakers), 2, replace=False)
        sources = [str(speakers[index].resolve()) for index in chosen]
        content = [source_fingerprint([Path(s) / "conversation.json" for s in sources]), asdict(config), seed]
        fingerprint = hashlib.sha256(json.dumps([*content, dialogue_nerfstudio.__version__]).encode()).hexdigest()
        wanted.append(Entry(name, name, fingerprint))
        tasks[name] = {
            "sources": sources,
            "output": str(output.resolve() / name),
            "seed": [seed, number],
            "config": config,
        }
    with Manifest(output) as manifest:
        return run_tasks(manifest, wanted, tasks, engine, many, watch)


def run_tasks(
    manifest: Manifest,
    wanted: Sequence[Entry],
    tasks: Dict[str, Any],
    engine: Engine,
    config: ManyConfig,
    watch: Watch = lambda entries, running: None,
) -> List[Entry]:
    """Runs the tasks that are not done, and returns what became of all of them.

    Args:
        manifest: open; entries of others than `wanted` stay.
        wanted: an entry for each task, as it would be if it had never run.
        tasks: by source.
        engine: not entered yet.
        config: retries, and whether refused ones are tried again.
        watch: told whenever something changes, and from time to time.

    Raises:
        DialogueError: the engine cannot be started.
    """
    entries = {entry.source: _resumed(entry, manifest, config.again) for entry in wanted}
    manifest.rewrite([*(e for s, e in manifest.entries.items() if s not in entries), *entries.values()])
    queue = deque(source for source, entry in entries.items() if entry.state == "waiting")
    running: Dict[str, Tuple[str, float]] = {}
    watch(entries, running)
    if queue:
        with engine:
            try:
                _run_queue(queue, running, entries, tasks, engine, manifest, config.retries, watch)
            finally:
                for source in running:
                    entries[source].state = "waiting"
                    manifest.record(entries[source])
    return list(entries.values())


def _resumed(entry: Entry, manifest: Manifest, again: bool) -> Entry:
    """What an earlier run left of it, `waiting` where there is something to do."""
    before = manifest.entries.get(entry.source)
    if before is None:
        return entry
    same = before.fingerprint == entry.fingerprint and before.output == entry.output
    if same and before.state == "done":
        made = [manifest.path.parent / before.output / each["folder"] for each in before.conversations]
        if made and all((folder / "conversation.json").is_file() for folder in made):
            return before
    if same and before.state == "refused" and not again:
        return before
    entry.attempts = before.attempts if same else 0
    return entry


def _run_queue(
    queue: Deque[str],
    running: Dict[str, Tuple[str, float]],
    entries: Dict[str, Entry],
    tasks: Dict[str, Any],
    engine: Engine,
    manifest: Manifest,
    retries: int,
    watch: Watch,
) -> None:
    started: Dict[str, float] = {}
    failures: Dict[str, int] = {}
    while queue or running:
        while queue and len(running) < engine.slots:
            source = queue.popleft()
            entry = entries[source]
            entry.state, entry.attempts, entry.reason = "running", entry.attempts + 1, ""
            running[source], started[source] = ("", 0.0), time.monotonic()
            manifest.record(entry)
            engine.start(source, tasks[source])
        for event in engine.wait(WAIT_SECONDS):
            if event.kind == "progress":
                if event.key in running:
                    running[event.key] = (event.stage, event.fraction)
                continue
            entry = entries[event.key]
            del running[event.key]
            entry.seconds = round(time.monotonic() - started.pop(event.key), 2)
            _settle(entry, event, manifest)
            if entry.state == "failed":
                failures[event.key] = failures.get(event.key, 0) + 1
                if failures[event.key] <= retries:
                    entry.state = "waiting"
                    queue.append(event.key)
            manifest.record(entry)
        watch(entries, running)


def _settle(entry: Entry, event: Event, manifest: Manifest) -> None:
    entry.reason = event.reason
    if event.kind == "done":
        entry.state, entry.conversations = "done", event.result.get("conversations", [])
    elif event.kind == "refused":
        entry.state = "refused"
    else:
        entry.state = "failed"
        if event.details:
            log = manifest.path.parent / LOG_FOLDER / f"{entry.output}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text(event.details, encoding="utf-8")
            entry.reason += f" Details: {log}"
