"""Signals that announce the end of a job: finish the step, checkpoint, leave with an exit code that says so."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from uniattn_pl.errors import RunFailure
from uniattn_pl.resilience import ranks

# SIGUSR1 is what SLURM is usually asked to send before a time limit (--signal=USR1@120).
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
FINISHED_KEPT = "phases that are finished are kept"


class Preempted(RunFailure):
    """A signal ended the fit in good order; the exit code is 128 + the signal's number, as a shell's would be."""

    def __init__(self, number: int, kept: str) -> None:
        self.exit_code = 128 + number
        name = signal.Signals(number).name
        super().__init__(f"{name} received; {kept}. The same command resumes this fit.")


class Preemption:
    """Whether a signal has come; raises at once outside of a training stage, where nothing is lost by it."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferred = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Listen to `SIGNALS` (in the main thread, where Python delivers them) until the block ends."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def install(self) -> None:
        """(Again) be the one handler: Lightning's own broadcasts inside the handler, which can lock ranks up."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._handle)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note signals inside the block; whoever runs it looks at `received`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def check(self) -> None:
        """Raise Preempted on every rank when any rank has noted a signal; all of them call this."""
        number = self.on_any_rank()
        if number:
            raise Preempted(number, FINISHED_KEPT)

    def on_any_rank(self) -> int:
        """The signal that any rank has noted, 0: none; schedulers often tell one process only. Every rank asks."""
        return max(received or 0 for received in ranks.gather(self.received))

    def _handle(self, number: int, _: FrameType | None) -> Any:
        self.received = number
        if not self._deferred:
            raise Preempted(number, FINISHED_KEPT)
