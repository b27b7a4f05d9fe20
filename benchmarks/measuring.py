"""Runs work in a process of its own and watches its memory; the form of the output. Loads neither torch nor
nerfstudio, which would count as the measured process's memory."""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import psutil

WATCH_SECONDS = 0.1
"""How often memory is looked at."""


def _answer(send: Callable[[Any], None], function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    started, worked = time.perf_counter(), time.process_time()
    result = function(*arguments)
    send((result, time.perf_counter() - started, time.process_time() - worked))


def resident_mib(process: psutil.Process) -> float:
    """What a process and those it started hold in memory now, MiB; pages they share count for each of them."""
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            # It ended between being listed and being asked.
            continue
    return total / 2**20


def watched(
    function: Callable[..., Any], *arguments: Any, look: Callable[[], None] = lambda: None
) -> tuple[Any, dict[str, float]]:
    """What a function of a module returns from a fresh process, and what it took: `seconds`, `processor_seconds` of all
    its threads, `peak_mib` of it and those it started, seen every WATCH_SECONDS.

    Args:
        function: run as `function(*arguments)`.
        look: called whenever memory is looked at, to show progress.

    Raises:
        RuntimeError: it failed; its traceback is on stderr.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_answer, args=(sender.send, function, arguments))
    worker.start()
    sender.close()
    peak = 0.0
    try:
        watch = psutil.Process(worker.pid)
        while not receiver.poll(WATCH_SECONDS):
            try:
                peak = max(peak, resident_mib(watch))
            except psutil.NoSuchProcess:
                continue
            look()
        result, seconds, worked = receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} failed, see above") from error
    finally:
        worker.join()
    return result, {"seconds": seconds, "processor_seconds": worked, "peak_mib": peak}


def table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns of text, numbers with three digits that count."""
    cells = [list(titles)] + [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(titles))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def report(figures: dict[str, Any], titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """JSON on stdout, so that it can be piped on, and a short table of it on stderr."""
    print(json.dumps(figures, indent=2, default=str))
    print(table(titles, rows), file=sys.stderr)
