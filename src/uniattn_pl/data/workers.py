"""Batches from worker processes, with an error message that a user can act on when such a process dies."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from uniattn_pl.errors import RunFailure

_DYING_S = 1.0  # between what a dying process breaks and its end


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """As `iter(loader)`, but the death of a worker process is explained, where its batch is missing.

    Raises:
        RunFailure: a worker process was killed.
    """
    before = multiprocessing.active_children()
    batches = iter(loader)
    workers = [process for process in multiprocessing.active_children() if process not in before]
    if workers:
        _find_deaths_at_batches()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # a missing process, a broken connection, half a message: it depends on the moment
            cause = _death(workers)
            if cause is None:
                raise
            raise RunFailure(
                f"a data worker process died ({cause}; usually the machine has run out of memory). The same command "
                "resumes the fit from its last checkpoint; data.num_workers=0 makes batches without such processes."
            ) from error
        yield batch


def _death(workers: Sequence[BaseProcess]) -> str | None:
    """Return how the first dead worker process ended, or None where all live."""
    if workers:
        wait([worker.sentinel for worker in workers], timeout=_DYING_S)
    code = next((worker.exitcode for worker in workers if worker.exitcode), None)
    if code is None:
        return None
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Quiet:
    """PyTorch's SIGCHLD handler without its errors about dead workers."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            self.handler(number, frame)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise


def _find_deaths_at_batches() -> None:
    """Keep PyTorch from raising wherever the main thread happens to be: in a forward, or while a checkpoint is written.

    A loader looks after its workers itself whenever it has waited a few seconds for a batch.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if callable(handler) and not isinstance(handler, _Quiet) and in_main_thread:
        signal.signal(signal.SIGCHLD, _Quiet(handler))
