"""Progress for people: a bar with time left on a terminal, a few plain lines in a log."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PLAIN_LINES = 10


class ProgressReporter:
    """Shows how far one piece of work is; a context manager.

    Args:
        label: what is being done.
        console: where to; a rich bar when it is a terminal, else about `PLAIN_LINES` lines in all.
    """

    def __init__(self, label: str, console: Console) -> None:
        self.label, self.console = label, console
        self._bar: Progress | None = None
        self._started = time.monotonic()
        self._first: int | None = None
        self._printed = -1

    def __enter__(self) -> ProgressReporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def update(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` are finished, with `text` behind."""
        if self.console.is_terminal:
            self._update_bar(done, total, text)
        else:
            self._print_line(done, total, text)

    def close(self) -> None:
        """Leave the bar as it is and let other output follow."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _update_bar(self, done: int, total: int, text: str) -> None:
        if self._bar is None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=self.console)
            self._bar.start()
            self._bar.add_task(self.label, total=total, completed=done, text=text)
        self._bar.update(self._bar.task_ids[0], completed=done, total=total, text=text)

    def _print_line(self, done: int, total: int, text: str) -> None:
        if self._first is None:
            self._first, self._started = done, time.monotonic()
        line_number = PLAIN_LINES * done // max(total, 1)
        if line_number == self._printed and done != total:
            return
        self._printed = line_number
        since = done - self._first
        seconds_left = (time.monotonic() - self._started) / since * (total - done) if since else None
        remaining = "" if seconds_left is None or done == total else f"  {seconds_left:.0f} s left"
        self.console.print(f"{self.label}  {done}/{total}  {text}{remaining}", highlight=False, soft_wrap=True)
