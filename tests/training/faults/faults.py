"""What can go wrong in a fit, as [point, action] pairs that are armed in a forked process: where, and what happens.

A point is [name, *arguments] of `POINTS`, an action [name, *arguments] of `ACTIONS`; both are plain data, so that a
test can send them to the driver. An action runs once, just before the work the point names.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loops.fit_loop import _FitLoop
from transformers import PreTrainedModel

from uniattn_pl.calibration.record import CalibrationRecord
from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.training.fit_tracking import FitTracking
from uniattn_pl.training.lightning_module import PostTrainingModule

# the class or module, the name of the function in it, and whether these arguments are meant
Point = tuple[Any, str, Callable[..., bool]]
BLOCK = 1 << 16


def step(stage: int, number: int) -> Point:
    """In the last micro batch of step `number` (from 1) of a stage."""

    def meant(module: PostTrainingModule, batch: object, index: int) -> bool:
        last = (index + 1) % module.trainer.accumulate_grad_batches == 0
        return last and (module.stage, module.trainer.global_step + 1) == (stage, number)

    return PostTrainingModule, "training_step", meant


def beginning(stage: int) -> Point:
    """With a stage's Trainer set up, and before its callbacks hear that training starts."""
    return _FitLoop, "setup_data", lambda loop, *_: loop.trainer.lightning_module.stage == stage


def calibration() -> Point:
    """In calibration, with the first of two layers solved and not recorded."""
    return CalibrationRecord, "save", lambda *_: True


def sealing(stage: int, number: int) -> Point:
    """With the files of a step's checkpoint written on this rank, and not yet summed."""
    return CheckpointStore, "_seal", lambda store, folder, *_: folder.match(f"stage{stage}/.step-{number:08d}")


def writing(stage: int, number: int) -> Point:
    """Before the files of a step's checkpoint are written."""
    return CheckpointStore, "_write", lambda store, _, file: file.match(f"stage{stage}/.step-{number:08d}/*")


def renaming(ending: str) -> Point:
    """Before something gets a name that ends so."""
    return os, "rename", lambda source, target: str(target).endswith(ending)


def renamed(start: str) -> Point:
    """Before something whose own name starts so gets another one."""
    return os, "rename", lambda source, target: Path(source).name.startswith(start)


def saving_model(folder: str) -> Point:
    """Before a phase's model folder is filled."""
    return PreTrainedModel, "save_pretrained", lambda model, path: Path(path).name.startswith(f".{folder}-")


def committing(phase: str) -> Point:
    """Before the manifest that leads to `phase` is written."""
    return Manifest, "write", lambda manifest, _: manifest.phase == phase


def ending(status: str) -> Point:
    """Before the MLflow run gets this status."""
    return FitTracking, "end", lambda tracking, now: now == status


def send(name: str, times: int = 1) -> Callable[..., None]:
    def act(*_: object) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.Signals[name])

    return act


def fill(ballast: str, spare: int) -> Callable[..., None]:
    """Fill the disk of the file `ballast` but for `spare` bytes."""

    def act(*_: object) -> None:
        with open(ballast, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(BLOCK))
            except OSError:
                os.ftruncate(file.fileno(), max(0, os.fstat(file.fileno()).st_size - spare))

    return act


def poison(first_row: int) -> Callable[..., None]:
    """Make a trained weight NaN, so that the loss of this micro batch is; its rows are numbered from `first_row`."""

    def act(module: PostTrainingModule, batch: dict[str, Any], _: int) -> None:
        batch["rows"] = first_row + torch.arange(len(batch["input_ids"]))
        weight = [p for p in module.parameters() if p.requires_grad][-1]
        with torch.no_grad():
            weight.fill_(math.nan)

    return act


def run_out_of_memory() -> Callable[..., None]:
    """What torch raises when a device has no room left."""

    def act(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity ...")

    return act


def snapshot(source: str, target: str) -> Callable[..., None]:
    """Copy a folder as it is now, which is as SIGKILL would leave it."""
    return lambda *_: shutil.copytree(source, target) and None


def hold(reached: str, resume: str) -> Callable[..., None]:
    """Tell through the pipe `reached`, and wait until somebody writes to the pipe `resume`."""

    def act(*_: object) -> None:
        Path(reached).write_text("reached", encoding="utf-8")
        Path(resume).read_text(encoding="utf-8")

    return act


POINTS: dict[str, Callable[..., Point]] = {
    f.__name__: f
    for f in (step, beginning, calibration, sealing, writing, renaming, renamed, saving_model, committing, ending)
}
ACTIONS: dict[str, Callable[..., Callable[..., None]]] = {
    f.__name__: f for f in (send, fill, poison, run_out_of_memory, snapshot, hold)
}


def arm(point: list[Any], action: list[Any]) -> None:
    """Have `action` happen in this process at `point`, the first time it is reached."""
    owner, name, meant = POINTS[point[0]](*point[1:])
    act = ACTIONS[action[0]](*action[1:])
    original = getattr(owner, name)
    happened = False

    def replacement(*args: Any, **kwargs: Any) -> Any:
        nonlocal happened
        if not happened and meant(*args):
            happened = True
            act(*args)
        return original(*args, **kwargs)

    setattr(owner, name, replacement)
