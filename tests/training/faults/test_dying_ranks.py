"""A rank that dies takes the others with it, and leaves a fit that resumes."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work, same

KILL = ["send", "SIGKILL"]
DDP = ["training.strategy=ddp"]
SHARDED = ["training.strategy=fsdp", "training.checkpoint_format=sharded"]
GONE_S = 60.0


@pytest.mark.parametrize(
    ("dead", "point", "options"),
    [
        (0, ["step", 1, 3], DDP),
        (1, ["writing", 2, 4], SHARDED),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else f"rank {value}",
)
def test_a_rank_that_dies_in_training(
    at: AtPoint, two_ranks: dict[str, Work], dead: int, point: list[object], options: list[str]
) -> None:
    work = at("stage1")
    ended = work.fit(*options, ranks=2, faults=[[dead, point, KILL]])
    other = 1 - dead
    assert (ended.codes[dead], ended.codes[other]) == (-9, 1), ended
    assert ended.message(other) == (
        "error: another rank of this fit has died; all of them end. The same command resumes this fit."
    )
    stage = point[1]
    assert work.steps(stage) == ["step-00000002"]
    work.resumes(*options, ranks=2)
    same(work, two_ranks["ddp" if options is DDP else "fsdp"])


@pytest.mark.parametrize("dead", [0, 1])
def test_a_rank_that_dies_in_calibration(at: AtPoint, whole: Work, dead: int) -> None:
    work = at("calibration")
    ended = work.fit(*DDP, ranks=2, faults=[[dead, ["calibration"], KILL]])
    assert (ended.codes[dead], ended.codes[1 - dead]) == (-9, 1), ended
    assert "another rank of this fit has died" in ended.message(1 - dead)
    assert work.manifest().phase == "initialise"
    if dead:
        work.resumes(*DDP, ranks=2)
        assert work.history().keys() == whole.history().keys()


@pytest.mark.parametrize(
    ("victim", "number", "code"),
    [("child", signal.SIGKILL, 1), ("parent", signal.SIGKILL, -9), ("parent", signal.SIGTERM, 143)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else str(value),
)
def test_nobody_is_left_of_a_fit_that_started_its_other_rank(
    at: AtPoint, victim: str, number: signal.Signals, code: int
) -> None:
    work = at("stage1")
    command = [sys.executable, "-m", "uniattn_pl", "fit", "--config", "tiny.yaml", *DDP, "trainer.devices=2"]
    # so many epochs that it is still at it when somebody dies
    longer = ["--allow-changes", "training.stage1.max_epochs=10000", "training.early_stop.enabled=false"]
    with subprocess.Popen(
        [*command, *longer],
        cwd=work.folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        next(line for line in parent.stdout if line.startswith("stage 1"))
        (child,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
        end = os.pidfd_open(child)
        os.kill(child if victim == "child" else parent.pid, number)
        _, errors = parent.communicate(timeout=GONE_S)
        assert select.select([end], [], [], GONE_S)[0], "the other rank is left behind"
        os.close(end)
    assert parent.returncode == code
    if number == signal.SIGTERM:
        assert "SIGTERM received; step " in errors
        assert work.status() == "KILLED"
    if victim == "child":
        assert "error: another rank of this fit has died; all of them end." in errors
        assert "Traceback" not in errors
        assert work.status() == "FAILED"
