"""The same experiment twice gives the same weights to the last bit, in other processes too."""

from __future__ import annotations

import pytest
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work


@pytest.mark.parametrize("options", [[], ["trainer.deterministic=true", "--allow-changes"]], ids=["as it is", "forced"])
def test_the_same_seed_twice(at: AtPoint, whole: Work, options: list[str]) -> None:
    work = at("calibration")
    work.resumes(*options)
    assert [work.weights(name) for name in ("initial", "stage1", "final")] == [
        whole.weights(name) for name in ("initial", "stage1", "final")
    ]


def test_another_seed(at: AtPoint, whole: Work) -> None:
    work = at("stage1")
    work.resumes("seed=1", "--allow-changes")
    assert work.weights("initial") == whole.weights("initial")
    assert work.weights("final") != whole.weights("final")
