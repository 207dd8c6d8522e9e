"""Runs sweeps as forked processes, whose fits are forks too; started by the tests as a process of its own.

Importing PyTorch, Lightning and transformers takes ten seconds, so it happens once. The forks are real
processes: they die of real signals, and locks, the ledger and run folders are what they leave behind. Events
(`start`, `end` of a fit, with its folder) are appended to events.txt, of which the tests read what really ran.

usage: sweep_driver.py SCENARIO COMMAND...
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.backends.backend_agg  # noqa: F401  # what the fits import late, every fork would import again
import mlflow.store.tracking.sqlalchemy_store
import mlflow.tracking  # noqa: F401

import uniattn_pl.sweeps.worker
import uniattn_pl.training.runner
from uniattn_pl.cli import main
from uniattn_pl.sweeps import process
from uniattn_pl.sweeps.ledger import Ledger
from uniattn_pl.training.manifest import Manifest

uniattn_pl.sweeps.worker.POLL_S = 0.05


def say(event: str, folder: str) -> None:
    with Path("events.txt").open("a") as file:
        file.write(f"{event} {folder}\n")


class ForkedFit:
    """A fit in a fork, with the part of `subprocess.Popen` that a worker uses."""

    def __init__(self, arguments: Sequence[str], log: Path, lock: int) -> None:
        self._code: int | None = None
        folder = next(word for word in reversed(arguments) if word.startswith("trainer.default_root_dir="))
        log.parent.mkdir(parents=True, exist_ok=True)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(output, 1)
            os.dup2(output, 2)
            sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = sys.__stderr__ = open(2, "w", closefd=False)  # noqa: SIM115
            say("start", folder.rpartition("/")[2])
            code = main(["fit", *arguments])
            say("end", folder.rpartition("/")[2])
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or 1e9)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("fit", timeout or 0.0)
            time.sleep(0.02)
        return self.poll() or 0

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def fork(arguments: list[str]) -> int:
    """Start a command in a process group of its own."""
    pid = os.fork()
    if pid == 0:
        os._exit(main(arguments))
    return pid


def outcome(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def once(arguments: list[str]) -> None:
    """The command alone; ends with its exit code."""
    sys.exit(outcome(fork(arguments)))


def two(arguments: list[str]) -> None:
    """Two workers at once."""
    codes = [outcome(pid) for pid in [fork(arguments), fork(arguments)]]
    sys.exit(max(codes))


def killed_twice(arguments: list[str]) -> None:
    """A worker killed with its fit in stage 1 of the second point; one killed alone as its fit ends; one that ends."""
    begin, finish, write = process.start_fit, Ledger.finish, Manifest.write

    def killed_in_stage_2(manifest: Manifest, folder: Path) -> None:
        write(manifest, folder)
        if manifest.phase == "stage2" and len(Path("events.txt").read_text().splitlines()) > 2:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)

    Manifest.write = killed_in_stage_2  # type: ignore[method-assign]
    print("first:", outcome(fork(arguments)), flush=True)
    Manifest.write = write  # type: ignore[method-assign]

    def killed_before_it_is_recorded(ledger: Ledger, *result: object) -> None:
        if Path("events.txt").read_text().count("end") > 3:
            os.kill(os.getpid(), signal.SIGKILL)
        finish(ledger, *result)  # type: ignore[arg-type]

    Ledger.finish = killed_before_it_is_recorded  # type: ignore[assignment,method-assign]
    print("second:", outcome(fork(arguments)), flush=True)
    Ledger.finish = finish  # type: ignore[method-assign]
    assert process.start_fit is begin
    sys.exit(outcome(fork(arguments)))


if __name__ == "__main__":
    process.start_fit = ForkedFit
    {"once": once, "two": two, "killed_twice": killed_twice}[sys.argv[1]](sys.argv[2:])
