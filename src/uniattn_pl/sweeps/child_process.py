"""A point's fit or evaluation as a process of its own: a crash of one ends neither the worker nor another point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Protocol

ERROR = "error: "  # how the command line begins each
PATIENCE_S = 600  # for an optimizer step to end and its checkpoint to be written


class Child(Protocol):
    """What a worker needs of a running job; `subprocess.Popen` has it."""

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


def start(command: str, arguments: Sequence[str], log: Path, lock: int) -> Child:
    """Start a command of this program with these arguments.

    Args:
        log: what it prints is appended there.
        lock: descriptor that it inherits, so that the point is not free before it has ended, whatever becomes of us.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "uniattn_pl", command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches the worker alone, which passes it on
        )


def stop(child: Child) -> None:
    """Ask a job to save its state and end; kill it when it does not in time, or at a second Ctrl-C."""
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(timeout=PATIENCE_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.wait()


def reason(log: Path, code: int) -> str:
    """Why a job ended with this exit code, in a line: its own error, or the signal."""
    if code < 0:
        return f"killed by signal {-code}"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    of_last = dropwhile(lambda line: not line.startswith(ERROR), reversed(lines))  # attempts before it have theirs
    errors = [line.removeprefix(ERROR) for line in takewhile(lambda line: line.startswith(ERROR), of_last)]
    return " ".join(dict.fromkeys(reversed(errors))) or f"exit code {code}"
