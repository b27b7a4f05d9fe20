"""A progress display for commands of several stages: a bar over all of them and one for each, with the time left."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Optional

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

OVERALL = "all"


class StageProgress:
    """Bars that fill as `progress(stage, done, total)` is called by whatever does the work. Use as a context manager.

    Where there is no terminal (a log, a pipe), a line for each finished stage instead.

    Args:
        shares: stage → how long it takes relative to the others; there is a bar over all of them, with an estimate of
            the whole time left. Without shares, each stage has only its own.
        console: where to; stdout if None.
    """

    def __init__(self, shares: Optional[Mapping[str, float]] = None, console: Optional[Console] = None) -> None:
        self._console = console or Console()
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._shares = dict(shares or {})
        self._fractions: dict[str, float] = {}
        self._started: dict[str, float] = {}
        self._tasks = {}
        if self._shares:
            self._tasks[OVERALL] = self._progress.add_task(OVERALL, total=sum(self._shares.values()))

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Report that `done` of `total` (in any unit) of `stage` is finished."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=1.0)
            self._started[stage] = time.perf_counter()
        before = self._fractions.get(stage, 0.0)
        self._fractions[stage] = min(1.0, done / total) if total > 0 else 1.0
        if not self._console.is_terminal and before < 1.0 <= self._fractions[stage]:
            self._console.print(f"{stage}: {time.perf_counter() - self._started[stage]:.1f} s", highlight=False)
        self._progress.update(self._tasks[stage], completed=self._fractions[stage])
        if self._shares:
            self._progress.update(self._tasks[OVERALL], completed=self.overall)

    @property
    def overall(self) -> float:
        """Shares done so far."""
        return sum(self._shares.get(stage, 0.0) * fraction for stage, fraction in self._fractions.items())

    def __enter__(self) -> "StageProgress":
        if self._console.is_terminal:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        if self._console.is_terminal:
            self._progress.stop()
