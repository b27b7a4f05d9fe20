"""A progress display for commands of several stages: a row a stage, each with its own estimate of the time left."""

import time
from types import TracebackType
from typing import Optional

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StageProgress:
    """Rows of progress bars, called as `progress(stage, done, total)` by whatever does the work.

    A stage's row appears with its first call and counts as finished when done == total, or when the next one starts. The
    seconds each stage took stay in `seconds`. Use as a context manager.
    """

    def __init__(self, console: Optional[Console] = None) -> None:
        self.progress = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console or Console(),
        )
        self.seconds: dict[str, float] = {}
        self._tasks: dict[str, int] = {}
        self._started: dict[str, float] = {}

    def __call__(self, stage: str, done: float, total: float) -> None:
        """Report that `done` of `total` (in any unit) of `stage` is finished."""
        now = time.perf_counter()
        if stage not in self._tasks:
            self._tasks[stage] = self.progress.add_task(stage, total=max(total, 1e-9))
            self._started[stage] = now
        self.progress.update(self._tasks[stage], completed=done, total=max(total, 1e-9))
        self.seconds[stage] = now - self._started[stage]

    def __enter__(self) -> "StageProgress":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.progress.stop()
