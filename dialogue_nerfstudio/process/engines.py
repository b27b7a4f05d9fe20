"""Where the work on many recordings is done: in processes of this machine, or by Ray on one machine or a cluster.

Conventions. A *work* is a function of a module, `work(task, report)`: `task` can be pickled, `report(stage, done,
total)` may be called often. It returns a dictionary or raises DialogueError. Work runs in processes of its own, so that
a crash or an end by the operating system is an event like others: `lost`. An engine starts what it is told and says
what happened; which task comes when, retries and records are `many`'s.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import os
import re
import signal
import socket
import threading
import time
import traceback
from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Literal, Optional, Tuple

from dialogue_nerfstudio.conversation.errors import DialogueError

Report = Callable[[str, float, float], None]
Work = Callable[[Any, Report], Dict[str, Any]]

REPORT_SECONDS = 0.3
"""Least time between two reports of one task."""

CONNECT_SECONDS = 5.0
"""How long a cluster has to answer."""

START_TRIES = 3
"""Ray gives its helpers 15 s to start, which they may miss on a busy machine."""

CPUS_PER_TASK = 2
"""Cores that one recording keeps busy: its participants are worked on side by side, its videos are coded in threads."""

ENVIRONMENT_ERRNOS = (1, 5, 13, 28, 30, 122)
"""EPERM, EIO, EACCES, ENOSPC, EROFS, EDQUOT: the machine's fault, not the recording's."""


@dataclass
class Event:
    """What happened to a task."""

    key: str
    kind: Literal["progress", "done", "refused", "failed", "lost"]
    """refused: a DialogueError; failed: another error; lost: its process is gone."""
    reason: str = ""
    details: str = ""
    """The traceback of a failure."""
    stage: str = ""
    fraction: float = 0.0
    result: Dict[str, Any] = field(default_factory=dict)


class Engine(ABC):
    """Starts tasks and tells what became of them. A context manager: leaving it ends everything it started."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many tasks can run at once."""

    @abstractmethod
    def start(self, key: str, task: Any) -> None:
        """Begins a task; at most `slots` at once."""

    @abstractmethod
    def wait(self, timeout: float) -> List[Event]:
        """What happened since the last call; returns at once if something did, else after `timeout` seconds."""

    @abstractmethod
    def __enter__(self) -> "Engine": ...

    @abstractmethod
    def __exit__(self, *exception: object) -> None: ...


def attempt(work: Work, key: str, task: Any, report: Report) -> Event:
    """Runs the work on a task in this process."""
    try:
        return Event(key, "done", result=work(task, report))
    except DialogueError as error:
        cause = error.__cause__
        blameless = isinstance(cause, OSError) and cause.errno in ENVIRONMENT_ERRNOS
        return Event(key, "failed" if blameless else "refused", str(error))
    except Exception as error:  # whatever a bug raises is told, and the other recordings go on
        return Event(key, "failed", f"{type(error).__name__}: {error}".rstrip(": "), traceback.format_exc())


def throttled(report: Callable[[str, float], None]) -> Report:
    """Passes reports, which come from several threads, on one by one and at most every REPORT_SECONDS."""
    latest, lock = -REPORT_SECONDS, threading.Lock()

    def throttle(stage: str, done: float, total: float) -> None:
        nonlocal latest
        with lock:
            now = time.monotonic()
            if now - latest >= REPORT_SECONDS:
                latest = now
                report(stage, done / total if total else 1.0)

    return throttle


# Processes of this machine


class _Worker:
    """A process that works on one task after the other."""

    def __init__(self, work: Work, log: Path, threads: int):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, str(log)), daemon=True)
        with _environment(OMP_NUM_THREADS=str(threads), NUMBA_NUM_THREADS=str(threads)):
            self.process.start()
        # Only the worker holds its end now: when it dies, ours says so.
        theirs.close()
        self.key: Optional[str] = None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that a process begun within inherits."""
    before = {name: os.environ.get(name) for name in values}
    for name, value in values.items():
        os.environ.setdefault(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)


def _serve(connection: multiprocessing.connection.Connection, work: Work, log: str) -> None:
    """A worker's life."""
    # Ctrl-C goes to all of a terminal's processes; the one that started us decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # The libraries' chatter would tear the live table.
    with open(log, "a") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    while True:
        try:
            key, task = connection.recv()
        except EOFError:
            return

        def tell(stage: str, fraction: float, key: str = key) -> None:
            connection.send(Event(key, "progress", stage=stage, fraction=fraction))

        connection.send(attempt(work, key, task, throttled(tell)))


def _end_with_parent() -> None:
    """Nobody would record what an orphan does."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


class LocalEngine(Engine):
    """Processes of this machine.

    Args:
        work: see this module's conventions.
        workers: how many tasks at once; None for as many as the cores keep busy.
        log: what the workers print is appended to it.
    """

    def __init__(self, work: Work, workers: Optional[int], log: Path):
        cores = os.cpu_count() or 1
        self._work, self._log = work, log
        self._slots = workers or max(1, cores // CPUS_PER_TASK)
        self._threads = max(1, cores // self._slots)
        self._workers: List[_Worker] = []

    @property
    def slots(self) -> int:
        return self._slots

    def __enter__(self) -> "LocalEngine":
        self._log.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def start(self, key: str, task: Any) -> None:
        idle = [worker for worker in self._workers if worker.key is None]
        for worker in idle:
            if not worker.process.is_alive():
                self._workers.remove(worker)
        worker = next((worker for worker in idle if worker.process.is_alive()), None)
        if worker is None:
            worker = _Worker(self._work, self._log, self._threads)
            self._workers.append(worker)
        worker.key = key
        # Where it dies at this very moment, `wait` finds out.
        with suppress(BrokenPipeError):
            worker.connection.send((key, task))

    def wait(self, timeout: float) -> List[Event]:
        busy = {worker.connection: worker for worker in self._workers if worker.key is not None}
        events: List[Event] = []
        for connection in multiprocessing.connection.wait(list(busy), timeout):
            worker = busy[connection]
            try:
                event = connection.recv()
            except (EOFError, ConnectionResetError):
                worker.process.join()
                events.append(Event(worker.key, "lost", _how_it_ended(worker.process)))
                self._workers.remove(worker)
                connection.close()
                continue
            if event.kind != "progress":
                worker.key = None
            events.append(event)
        return events


def _how_it_ended(process: multiprocessing.process.BaseProcess) -> str:
    code = process.exitcode
    if code is not None and code < 0:
        how = f"by signal {-code} ({signal.Signals(-code).name})"
        return f"Its process was ended {how}." + (" Out of memory?" if -code == signal.SIGKILL else "")
    return f"Its process ended by itself, with exit code {code}."


# Ray


class RayEngine(Engine):
    """Ray, on this machine or on the cluster at an address; every node needs this package and the same files.

    Args:
        work: see this module's conventions.
        workers: how many tasks at once; None for as many as the cluster's cores keep busy.
        address: of a running cluster ("auto", "host:6379", "ray://host:10001"); None starts Ray here.

    Raises:
        DialogueError: Ray is not installed, or nothing answers at the address.
    """

    def __init__(self, work: Work, workers: Optional[int], address: Optional[str]):
        self._ray = import_ray()
        self._work, self._wanted, self._address = work, workers, address
        self._tasks: Dict[Any, str] = {}
        self._board: Any = None
        self._cpus = 1.0

    def __enter__(self) -> "RayEngine":
        ray = self._ray
        if self._address is not None:
            check_address(self._address)
        if self._address is not None:
            self._init(address=self._address)
        else:
            for left in reversed(range(START_TRIES)):
                try:
                    self._init(
                        address="local",
                        num_cpus=os.cpu_count(),
                        include_dashboard=False,
                        # Nobody else is to reach it.
                        _node_ip_address="127.0.0.1",
                    )
                    break
                except DialogueError:
                    if not left:
                        raise
        total = self._total_cpus()
        if self._wanted:
            self._cpus = total / self._wanted
            self._cpus = float(int(self._cpus)) if self._cpus >= 1 else self._cpus
        else:
            self._cpus = float(min(CPUS_PER_TASK, max(int(total), 1)))
        self._board = ray.remote(num_cpus=0)(_Board).remote()
        return self

    def _init(self, **options: Any) -> None:
        try:
            self._ray.init(logging_level="ERROR", log_to_driver=False, **options)
        except Exception as error:  # Ray raises all kinds, `Exception` itself among them
            self._ray.shutdown()
            reason = (str(error).strip() or type(error).__name__).split("\n")[0].rstrip(".")
            if self._address:
                where, advice = f"The Ray cluster {self._address} cannot be used", "look at it with `ray status`"
            else:
                where, advice = "Ray cannot be started here", "try again when this machine is less busy"
            raise DialogueError(f"{where} ({reason}): {advice}, or use --engine local.") from error

    def _total_cpus(self) -> float:
        return float(self._ray.cluster_resources().get("CPU", 1.0))

    @property
    def slots(self) -> int:
        # A cluster may grow and shrink.
        return self._wanted or max(1, int(self._total_cpus() / self._cpus))

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)
        self._ray.shutdown()

    def start(self, key: str, task: Any) -> None:
        # Retries are counted and recorded by `many`, not by Ray.
        remote = self._ray.remote(num_cpus=self._cpus, max_retries=0, max_calls=0)(_ray_attempt)
        self._tasks[remote.remote(self._work, key, task, self._board)] = key

    def wait(self, timeout: float) -> List[Event]:
        ready, _ = self._ray.wait(list(self._tasks), timeout=timeout) if self._tasks else ([], [])
        events = [
            Event(key, "progress", stage=stage, fraction=fraction)
            for key, (stage, fraction) in self._ray.get(self._board.take.remote()).items()
        ]
        return events + [self._outcome(task) for task in ready]

    def _outcome(self, task: Any) -> Event:
        key = self._tasks.pop(task)
        try:
            return self._ray.get(task)
        except self._ray.exceptions.RayTaskError as error:
            # It could not even begin, for example where a node lacks this package: its last line says why.
            details = _plain(error)
            return Event(key, "lost", f"Ray could not begin it: {details.splitlines()[-1]}", details)
        except self._ray.exceptions.RayError as error:
            details = _plain(error)
            return Event(key, "lost", f"Ray lost it ({type(error).__name__}): {details.splitlines()[0]}", details)


def _plain(error: BaseException) -> str:
    """An error's text without a terminal's colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip() or type(error).__name__


def import_ray() -> Any:
    """Ray, quiet about its usage statistics, which it does not send from here.

    Raises:
        DialogueError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise DialogueError(
            "--engine ray needs Ray, which is not installed: pip install 'dialogue-nerfstudio[ray]', or use "
            "--engine local."
        ) from error
    return ray


def check_address(address: str) -> None:
    """Whether something listens at a cluster's address: Ray itself would try for minutes.

    Raises:
        DialogueError: it is no address, or nothing answers.
    """
    if address == "auto":
        return
    host, port = split_address(address)
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except OSError as error:
        raise DialogueError(
            f"No Ray cluster answers at --ray-address {address} ({error.strerror or error}): start one with "
            "`ray start --head`, or leave the address out to use this machine."
        ) from error


def split_address(address: str) -> Tuple[str, int]:
    """Host and port of "host:port" or "ray://host:port".

    Raises:
        DialogueError: it is neither.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise DialogueError(f"--ray-address {address} is no address: give HOST:PORT, ray://HOST:PORT, or auto.")
    return host.strip("[]"), int(port)


class _Board:
    """An actor to which tasks tell their progress: the latest of each."""

    def __init__(self) -> None:
        self._latest: Dict[str, Tuple[str, float]] = {}

    def tell(self, key: str, stage: str, fraction: float) -> None:
        self._latest[key] = (stage, fraction)

    def take(self) -> Dict[str, Tuple[str, float]]:
        latest, self._latest = self._latest, {}
        return latest


def _ray_attempt(work: Work, key: str, task: Any, board: Any) -> Event:
    return attempt(work, key, task, throttled(lambda stage, fraction: board.tell.remote(key, stage, fraction)))
