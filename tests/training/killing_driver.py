"""Runs a fit again and again in forked processes, each of which kills itself at one chosen point.

Started by test_kill_and_resume.py as its own process. Importing PyTorch, Lightning and transformers takes
ten seconds, so it happens once and every attempt is a fork; SIGKILL and what it leaves behind are real.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from tests.forking import before_forking

from uniattn_pl import files
from uniattn_pl.calibration.record import CalibrationRecord
from uniattn_pl.cli import main
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.lightning_module import PostTrainingModule


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def patch(
    owner: Any, name: str, before: Callable[..., bool] | None = None, after: Callable[..., bool] | None = None
) -> None:
    """Make `owner.name` kill the process before or after its work, once the predicate on its arguments holds."""
    original = getattr(owner, name)

    def replacement(*args: Any, **kwargs: Any) -> Any:
        if before is not None and before(*args):
            kill()
        result = original(*args, **kwargs)
        if after is not None and after(*args):
            kill()
        return result

    setattr(owner, name, replacement)


def at_step(stage: int, step: int) -> Callable[..., bool]:
    return lambda _, trainer, module, *rest: (module.stage, trainer.global_step) == (stage, step)


def layer(index: int) -> Callable[..., bool]:
    return lambda record, solved: solved.error.layer == index


def in_phase(phase: str) -> Callable[..., bool]:
    return lambda manifest, *rest: manifest.phase == phase


def second_micro_batch(stage: int, step: int) -> Callable[..., bool]:
    return lambda module, batch, index: module.stage == stage and module.trainer.global_step == step and index % 2 == 1


KILL_POINTS: dict[str, Callable[[], None]] = {
    "after the run was created, before its id was recorded": lambda: patch(
        MLflowRun, "log_params", before=lambda *_: True
    ),
    "in calibration, the first of two layers solved": lambda: patch(CalibrationRecord, "save", after=layer(6)),
    "in calibration, the second solved but not recorded": lambda: patch(CalibrationRecord, "save", before=layer(7)),
    "between initialisation's folder and its commit": lambda: patch(Manifest, "advance", before=in_phase("initialise")),
    "stage 1, step 4": lambda: patch(StepCheckpoint, "on_train_batch_end", after=at_step(1, 4)),
    "stage 1, metrics of step 6 written but its checkpoint not": lambda: patch(
        files.os, "rename", before=lambda source, target: str(target).endswith("stage1/step-00000006")
    ),
    "at the switch, before the commit": lambda: patch(Manifest, "advance", before=in_phase("stage1")),
    "at the switch, after the commit": lambda: patch(Manifest, "write", after=in_phase("stage2")),
    "stage 2, at the checkpoint at the end of an epoch": lambda: patch(
        StepCheckpoint, "on_train_batch_end", after=at_step(2, 3)
    ),
    "stage 2, in the middle of an accumulation": lambda: patch(
        PostTrainingModule, "training_step", after=second_micro_batch(2, 4)
    ),
    "before the final model appears": lambda: patch(
        files.os, "rename", before=lambda source, target: str(target).endswith("final")
    ),
    "before the end is recorded": lambda: patch(Manifest, "advance", before=in_phase("finish")),
}


def attempt(name: str, arguments: list[str]) -> None:
    """Fork, arm the kill point, run the command; the child must die of SIGKILL."""
    child = os.fork()
    if child == 0:
        KILL_POINTS[name]()
        os._exit(main(arguments))
    _, status = os.waitpid(child, 0)
    if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
        raise SystemExit(f"'{name}' was never reached: the fit ended with status {status}")
    print(f"killed: {name}", flush=True)


if __name__ == "__main__":
    before_forking()
    for point in KILL_POINTS:
        attempt(point, sys.argv[1:])
