"""A job scheduler's signals end a fit in good order, wherever they come and whichever rank they reach."""

from __future__ import annotations

import pytest
from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work, same


def test_signals_in_calibration_and_in_both_stages(at: AtPoint, whole: Work) -> None:
    work = at("calibration")
    ended = work.fit(faults=[[0, ["calibration"], ["send", "SIGTERM"]]])
    assert ended.codes == [143], ended
    assert "SIGTERM received; phases that are finished are kept." in ended.message()
    assert (work.manifest().phase, work.status()) == ("initialise", "KILLED")

    ended = work.fit(faults=[[0, ["step", 1, 3], ["send", "SIGUSR1"]]])
    assert ended.codes == [138], ended
    assert "SIGUSR1 received; step 3 is saved in " in ended.message()
    assert work.steps(1) == ["step-00000002", "step-00000003"]
    assert work.status() == "KILLED"

    ended = work.fit(faults=[[0, ["step", 2, 5], ["send", "SIGTERM"]]])
    assert ended.codes == [143], ended
    assert work.steps(2) == ["step-00000004", "step-00000005"]
    assert work.status() == "KILLED"

    work.resumes()
    same(work, whole)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_signal_to_one_of_two_ranks_ends_both(at: AtPoint, two_ranks: dict[str, Work], strategy: str) -> None:
    work, options = at("stage1"), f"training.strategy={strategy}"
    # also where Lightning's own handler would answer, which makes rank 0 wait for a message that rank 1 never sends
    for stage, rank, point, step in ((1, 1, ["step", 1, 3], 3), (2, 0, ["beginning", 2], 1)):
        ended = work.fit(options, ranks=2, faults=[[rank, point, ["send", "SIGTERM"]]])
        assert ended.codes == [143, 143], ended
        assert all(f"SIGTERM received; step {step} is saved in " in ended.message(each) for each in (0, 1))
        assert work.steps(stage)[-1] == f"step-{step:08d}"
        assert work.status() == "KILLED"
    work.resumes(options, ranks=2)
    same(work, two_ranks[strategy])


def test_more_signals_while_a_checkpoint_is_written_change_nothing(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    faults = [
        [0, ["step", 2, 5], ["send", "SIGTERM"]],
        [0, ["writing", 2, 5], ["send", "SIGTERM", 2]],
        [0, ["ending", "KILLED"], ["send", "SIGTERM"]],
    ]
    ended = work.fit(faults=faults)
    assert ended.codes == [143], ended
    assert "SIGTERM received; step 5 is saved in " in ended.message()
    assert work.steps(2) == ["step-00000004", "step-00000005"]
    assert work.status() == "KILLED"
    work.resumes()
    same(work, whole)


def test_signals_behind_the_last_step_of_a_stage_end_the_fit_there(at: AtPoint, whole: Work) -> None:
    work = at("stage1 with checkpoints")
    # noted while the last checkpoint is written; then outside of training
    for point in (["sealing", 1, 6], ["saving_model", "stage1"]):
        ended = work.fit(faults=[[0, point, ["send", "SIGTERM"]]])
        assert ended.codes == [143], ended
        assert (work.manifest().phase, work.status()) == ("stage1", "KILLED")
    work.resumes()
    same(work, whole)
