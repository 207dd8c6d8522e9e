"""A loss that is no number, or explodes, ends a fit before it reaches a checkpoint, and says where."""

from __future__ import annotations

import re

import pytest
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work, same


def test_a_loss_that_is_not_a_number(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    # the second of two micro batches, two rows each
    ended = work.fit(faults=[[0, ["step", 2, 6], ["poison", 70]]])
    assert ended.codes == [1], ended
    message = ended.message()
    assert "the loss became nan at step 6 on training rows 70, 71 (counted from 0" in message
    assert "the last good checkpoint is runs/tiny/checkpoints/stage2/step-00000004." in message
    assert work.steps(2) == ["step-00000002", "step-00000004"]
    assert work.status() == "FAILED"
    work.resumes()
    same(work, whole)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_loss_is_not_a_number(at: AtPoint, two_ranks: dict[str, Work], rank: int) -> None:
    work, options = at("stage1"), "training.strategy=ddp"
    ended = work.fit(options, ranks=2, faults=[[rank, ["step", 1, 5], ["poison", 100 * rank]]])
    assert ended.codes == [1, 1], ended
    for each in (0, 1):
        message = ended.message(each)
        assert f"the loss became nan at step 5 on training rows {100 * rank}, {100 * rank + 1} (" in message
        assert "the last good checkpoint is runs/tiny/checkpoints/stage1/step-00000004." in message
    if rank:
        work.resumes(options, ranks=2)
        same(work, two_ranks["ddp"])


def test_a_loss_that_explodes(at: AtPoint, whole: Work) -> None:
    work = at("stage2")
    ended = work.fit("--allow-changes", "training.stage2.learning_rate=10")
    assert ended.codes == [1], ended
    message = ended.message()
    assert re.search(r"the loss became [\d.e+]+ at step 2.*; no checkpoint had been written yet", message)
    assert "A lower learning rate" in message
    work.resumes("--allow-changes")
    assert work.weights() == whole.weights()
