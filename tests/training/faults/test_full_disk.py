"""A disk that fills up ends a fit with a message; what was there stays good, and with room the fit goes on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Ended, Work, same

from uniattn_pl.resilience.checkpoints import damage

SPARE = 100_000  # bytes: a checkpoint of stage 2 begins and does not end


def fill(work: Work, spare: int = 0) -> list[object]:
    return ["fill", str(work.folder / "runs/ballast"), spare]


def free(work: Work) -> None:
    (work.run.parent / "ballast").unlink()


@pytest.fixture
def filled(on_small_disk: AtPoint) -> Callable[..., tuple[Work, Ended]]:
    """A fit during which the disk was full from a point on, and which was given room then."""

    def run(start: str, point: list[object], *arguments: str, ranks: int = 1, spare: int = 0) -> tuple[Work, Ended]:
        work = on_small_disk(start)
        ended = work.fit(*arguments, ranks=ranks, faults=[[0, point, fill(work, spare)]])
        free(work)
        return work, ended

    return run


Filled = Callable[..., tuple[Work, Ended]]


@pytest.mark.parametrize("point", ["writing", "sealing"])
def test_a_checkpoint_that_does_not_fit(filled: Filled, whole: Work, point: str) -> None:
    work, ended = filled("stage2 with checkpoints", [point, 2, 6], spare=SPARE if point == "writing" else 0)
    assert ended.codes == [1], ended
    good = "runs/tiny/checkpoints/stage2/step-00000004"
    message = ended.message()
    assert "the checkpoint of step 6 could not be written" in message
    assert "No space left on device" in message
    assert f"the last good checkpoint is {good}." in message
    assert "MiB free and a checkpoint takes about 1: free that much there" in message
    assert work.steps(2) == ["step-00000002", "step-00000004"]
    assert damage(work.run / "checkpoints/stage2/step-00000004") is None
    assert not list((work.run / "checkpoints/stage2").glob(".*"))
    assert work.status() == "FAILED"
    work.resumes()
    same(work, whole)


def test_shards_that_do_not_fit(filled: Filled, two_ranks: dict[str, Work]) -> None:
    options = ["training.strategy=fsdp", "training.checkpoint_format=sharded"]
    work, ended = filled("stage1", ["writing", 2, 4], *options, ranks=2, spare=SPARE)
    assert ended.codes == [1, 1], ended
    for rank in (0, 1):
        assert "the checkpoint of step 4 could not be written: No space left on device" in ended.message(rank)
        assert "the last good checkpoint is runs/tiny/checkpoints/stage2/step-00000002." in ended.message(rank)
    assert damage(work.run / "checkpoints/stage2/step-00000002") is None
    work.resumes(*options, ranks=2)
    same(work, two_ranks["fsdp"])


@pytest.mark.parametrize(
    ("start", "point", "phase"),
    [
        ("calibration", ["calibration"], "initialise"),
        ("stage1", ["committing", "stage2"], "stage1"),
        ("stage2", ["committing", "stage2"], "stage2"),  # the first thing that a resumed fit writes
        ("stage2", ["saving_model", "final"], "stage2"),
        ("stage2", ["committing", "done"], "finish"),
    ],
    ids=lambda value: value[0] + " " + str(value[-1]) if isinstance(value, list) else None,
)
def test_a_phase_whose_product_does_not_fit(
    filled: Filled, whole: Work, start: str, point: list[object], phase: str
) -> None:
    work, ended = filled(start, point)
    assert ended.codes == [1], ended
    assert ended.message() == (
        "error: the disk is full while writing to runs/tiny; free some room there. The same command resumes this fit."
    )
    assert work.manifest().phase == phase
    assert not [path.name for path in work.run.glob(".*-*")]
    work.resumes()
    same(work, whole)
