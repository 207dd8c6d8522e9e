"""A fit goes on with another number of ranks, from the checkpoint of any strategy that these can read."""

from __future__ import annotations

import math
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.parity import ROUNDS_ALIKE
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work

SINGLE, DDP, FSDP = (f"training.strategy={name}" for name in ("single", "ddp", "fsdp"))
SHARDED = "training.checkpoint_format=sharded"


@pytest.mark.parametrize(
    ("stage", "before", "after"),
    [
        (1, (2, [DDP]), (1, [SINGLE])),
        (2, (2, [FSDP]), (1, [SINGLE])),
        (1, (2, [FSDP, SHARDED]), (1, [FSDP, SHARDED])),
        (2, (1, [SINGLE]), (2, [DDP])),
        (1, (1, [SINGLE]), (2, [FSDP])),
        (2, (1, [FSDP, SHARDED]), (2, [FSDP, SHARDED])),
    ],
    ids=lambda value: f"{value[0]} {value[1][0].split('=')[1]}" if isinstance(value, tuple) else f"stage {value}",
)
def test_a_killed_fit_goes_on_with_other_ranks(
    at: AtPoint, whole: Work, stage: int, before: tuple[int, list[str]], after: tuple[int, list[str]]
) -> None:
    work = at(f"stage{stage}")
    ranks, options = before
    everyone: list[Any] = [[rank, ["step", stage, 4], ["send", "SIGKILL"]] for rank in range(ranks)]
    ended = work.fit(*options, ranks=ranks, faults=everyone)
    assert ended.codes == [-9] * ranks, ended
    assert work.steps(stage) == ["step-00000002"]
    ranks, options = after
    work.resumes(*options, ranks=ranks)
    history, reference = work.history(), whole.history()
    assert {key: [step for step, _ in points] for key, points in history.items()} == {
        key: [step for step, _ in points] for key, points in reference.items()
    }
    for (_, loss), (_, expected) in zip(history["stage2/loss"], reference["stage2/loss"], strict=True):
        assert math.isclose(loss, expected, rel_tol=1e-5)
    trained, wanted = (load_file(fit.run / "final" / "model.safetensors") for fit in (work, whole))
    assert all(
        (trained[name] - weight).abs().max() < (1e-5 if ROUNDS_ALIKE else 3e-5) for name, weight in wanted.items()
    )


def test_shards_are_refused_by_a_strategy_that_cannot_read_them(at: AtPoint) -> None:
    work = at("stage1")
    everyone: list[Any] = [[rank, ["step", 1, 4], ["send", "SIGKILL"]] for rank in (0, 1)]
    assert work.fit(FSDP, SHARDED, ranks=2, faults=everyone).codes == [-9, -9]
    ended = work.fit(SINGLE)
    assert ended.codes == [2], ended
    assert "was written in shards, which training.strategy=fsdp reads" in ended.message()
