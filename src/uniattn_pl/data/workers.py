"""What the death of a data worker process means, said in words a user can act on."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from uniattn_pl.errors import RunFailure

_DEATH = re.compile(r"DataLoader worker \(pid\S* ([\d, ]+)\) (?:is )?([^.]*)")
_CAUSES: dict[str, str] = {}  # process id -> how it ended


@contextmanager
def explain_worker_deaths() -> Iterator[None]:
    """Turn PyTorch's RuntimeError about a dead DataLoader worker into a RunFailure; others pass."""
    try:
        yield
    except RuntimeError as error:
        death = _DEATH.match(str(error))
        if death is None:
            raise
        processes, cause = death[1].split(", "), death[2].strip()
        # The signal is known only where the death is seen first; PyTorch may find the process missing afterwards.
        cause = next((_CAUSES[process] for process in processes if process in _CAUSES), cause)
        _CAUSES.update(dict.fromkeys(processes, cause))
        raise RunFailure(
            f"a data worker process died ({cause}; usually the machine has run out of memory). The same command "
            "resumes the fit from its last checkpoint; data.num_workers=0 makes batches without such processes."
        ) from error


class _Explaining:
    """A SIGCHLD handler that explains what PyTorch's own raises."""

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def __call__(self, number: int, frame: FrameType | None) -> None:
        with explain_worker_deaths():
            self.handler(number, frame)


def watch_workers() -> None:
    """Explain deaths also where PyTorch's SIGCHLD handler raises: anywhere in the main thread, as in a forward.

    PyTorch installs that handler once, with the first worker process.
    """
    handler = signal.getsignal(signal.SIGCHLD)
    if callable(handler) and not isinstance(handler, _Explaining) and _in_main_thread():
        signal.signal(signal.SIGCHLD, _Explaining(handler))


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
