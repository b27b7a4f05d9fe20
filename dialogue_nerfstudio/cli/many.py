"""The display of many tasks: a live table of those that run, how many are left, and those that came to nothing."""

import time
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Optional

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dialogue_nerfstudio.process.manifest import Entry

FINAL = ("done", "refused", "failed")

COLOURS = {"done": "green", "refused": "yellow", "failed": "bold red"}

REFRESH_SECONDS = 0.25


class ManyProgress:
    """Told all entries again and again, it shows what changed. Use as a context manager.

    Where there is no terminal (a log, a pipe), a line for each that is finished instead.

    Args:
        console: where to; stdout if None.
    """

    def __init__(self, console: Optional[Console] = None) -> None:
        self._console = console or Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._start = time.monotonic()
        self._told: Optional[set[str]] = None
        self._refreshed = 0.0

    def __call__(self, entries: dict[str, Entry], running: dict[str, tuple[str, float]]) -> None:
        """Show how things stand."""
        finished = {source for source, entry in entries.items() if entry.state in FINAL}
        if self._told is None:
            self._told = finished
            before = Counter(entries[source].state for source in finished)
            if before:
                counts = ", ".join(f"{before[state]} {state}" for state in FINAL if before[state])
                self._console.print(f"{len(entries)} recordings; from earlier runs: {counts}.", highlight=False)
            self._known = len(finished)
        for source in [source for source in entries if source in finished and source not in self._told]:
            self._told.add(source)
            self._console.print(_line(entries[source], len(self._told), len(entries)), highlight=False, soft_wrap=True)
        if self._console.is_terminal and time.monotonic() - self._refreshed > REFRESH_SECONDS:
            self._refreshed = time.monotonic()
            self._live.update(self._table(entries, running, len(finished)), refresh=True)

    def _table(self, entries: dict[str, Entry], running: dict[str, tuple[str, float]], finished: int) -> RenderableType:
        counts = Counter(entry.state for entry in entries.values())
        seconds, new = time.monotonic() - self._start, finished - self._known
        left = f", about {duration(seconds / new * (len(entries) - finished))} left" if new else ""
        words = ", ".join(
            f"{counts[state]} {state}" for state in ("running", "waiting", *FINAL) if counts[state] or state == "done"
        )
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("recording", "stage", "", "try"):
            table.add_column(title)
        for source, (stage, fraction) in list(running.items())[: max(1, self._console.height - 6)]:
            bar = ProgressBar(total=1.0, completed=fraction, width=30)
            table.add_row(entries[source].output, stage or "beginning", bar, str(entries[source].attempts))
        whole = ProgressBar(total=max(len(entries), 1), completed=finished, width=60)
        return Group(table, whole, Text(f"{words}; {duration(seconds)}{left}"))

    def __enter__(self) -> "ManyProgress":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._console.is_terminal:
            self._live.stop()


def duration(seconds: float) -> str:
    """Two units of time at most, e.g. 3 h 12 min."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _line(entry: Entry, number: int, total: int) -> Text:
    line = Text(f"[{number}/{total}] {entry.output}: ")
    line.append(entry.state, style=COLOURS[entry.state])
    frames = sum(each.get("num_frames", 0) for each in entry.conversations)
    line.append(f", {frames} frames, {entry.seconds:.0f} s" if entry.state == "done" else f". {entry.reason}")
    return line


def print_outcome(console: Console, entries: list[Entry], output: Path, manifest: Path) -> int:
    """How many became something, those that did not with their reasons, and the exit code: 2 if there are such."""
    counts = Counter(entry.state for entry in entries)
    bad = [entry for entry in entries if entry.state != "done"]
    if bad:
        table = Table(box=None, pad_edge=False, header_style="bold", title="Not usable", title_justify="left")
        for title in ("recording", "", "why"):
            table.add_column(title)
        for entry in bad:
            state = Text(entry.state, style=COLOURS.get(entry.state, ""))
            table.add_row(Text(entry.output), state, Text(entry.reason, overflow="fold"))
        console.print(table)
    made = sum(len(entry.conversations) for entry in entries if entry.state == "done")
    others = "".join(f", {counts[state]} {state}" for state in ("refused", "failed", "waiting") if counts[state])
    console.print(
        f"{counts['done']} of {len(entries)} recordings are done{others}: {made} conversation(s) in {output}. "
        f"What became of each: {manifest}",
        highlight=False,
        soft_wrap=True,
    )
    return 2 if bad else 0
