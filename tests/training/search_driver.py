"""Runs the same searched fit in two folders, in forked processes: once as it is, and killed twice and then resumed.

Started by test_measured_fit.py as its own process, with the folders `whole` and `killed` to work in. As in
killing_driver.py, what takes long to import is imported once; SIGKILL and what it leaves behind are real.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.forking import before_forking
from tests.training.killing_driver import in_phase, patch

from uniattn_pl.cli import main
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.search.greedy import GreedySearch
from uniattn_pl.search.unified_streams import UnifiedStreams


def log_evaluations() -> None:
    """Write every change that is evaluated down in `tried.txt` of the working folder."""

    def log(_: Any, plan: Any, changed: int) -> bool:
        with Path("tried.txt").open("a", encoding="utf-8") as file:
            file.write(f"{changed} {plan.rows[changed].role}\n")
        return False

    patch(UnifiedStreams, "try_plan", before=log)


def second_round(search: GreedySearch) -> bool:
    """Two evaluations of the second round are recorded."""
    return (len(search.points), len(search.scores)) == (2, 2)


KILL_POINTS: dict[str, Callable[[], None]] = {
    "in the second round of the search": lambda: patch(GreedySearch, "_save", after=second_round),
    "after the search, before its plan is recorded": lambda: patch(Manifest, "advance", before=in_phase("prepare")),
}


def run(folder: str, arguments: list[str], kill_point: str | None = None) -> None:
    """Run the command in a fork; it must be killed at the kill point, or else succeed."""
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        log_evaluations()
        if kill_point is not None:
            KILL_POINTS[kill_point]()
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed != (kill_point is not None) or (not killed and status != 0):
        raise SystemExit(f"'{kill_point}' in {folder}: the fit ended with status {status}")


if __name__ == "__main__":
    before_forking()
    run("whole", sys.argv[1:])
    for point in KILL_POINTS:
        run("killed", sys.argv[1:], point)
    run("killed", sys.argv[1:])
