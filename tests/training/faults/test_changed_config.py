"""Resuming with another config: refused by key, allowed on request, free where it only says where to run."""

from __future__ import annotations

from tests.training.faults.conftest import AtPoint
from tests.training.faults.fits import Work, same

CHANGES = ["training.stage2.max_epochs=1", "seed=7", "training.stage2.learning_rate=2.0e-3"]


def test_every_changed_key_is_named(at: AtPoint, whole: Work) -> None:
    work = at("stage2")
    ended = work.fit(*CHANGES, "training.micro_batch_size=1")
    assert ended.codes == [2], ended
    errors = [line for line in ended.stderr[0].splitlines() if line.startswith("error: ")]
    named = [line.removeprefix("error: ").split(" ")[0] for line in errors[:-1]]
    assert named == ["seed", "training.stage2.learning_rate", "training.stage2.max_epochs"]
    assert "--allow-changes" in errors[-1]
    work.resumes()
    same(work, whole)


def test_what_is_still_to_be_done_changes_when_that_is_allowed(at: AtPoint, whole: Work) -> None:
    work = at("stage2")
    work.resumes("--allow-changes", "training.stage2.max_epochs=1")
    history = work.history()
    assert [step for step, _ in history["stage2/loss"]] == [7, 8, 9]
    assert history["stage1/loss"] == whole.history()["stage1/loss"]
    assert work.manifest().config["training"]["stage2"]["max_epochs"] == 1
    assert work.weights("stage1") == whole.weights("stage1")


def test_where_a_fit_runs_may_change_at_any_time(at: AtPoint, whole: Work) -> None:
    work = at("stage2 with checkpoints")
    placement = [
        "trainer.devices=1",
        "training.strategy=single",
        "training.checkpoint_every_steps=1",
        "data.num_workers=1",
    ]
    work.resumes(*placement)
    same(work, whole)
