"""Early stopping and best weights by a hand-made sequence of held-out losses, in a plain Trainer."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.training.test_callbacks import Recorder, Regression, run, weights

from uniattn_pl.errors import RunFailure
from uniattn_pl.evaluation.held_out import HeldOut
from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.training.callbacks.best_weights import BestWeights
from uniattn_pl.training.callbacks.early_stop import EarlyStop
from uniattn_pl.training.callbacks.held_out_early_stop import HeldOutEarlyStop
from uniattn_pl.training.callbacks.held_out_loss import HeldOutLoss
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.callbacks.throughput import Throughput


class Seen(Regression):
    """Keeps its weights behind every step, and has the held-out loss of a list by step."""

    def __init__(self, losses: dict[int, float]) -> None:
        super().__init__()
        self.held_out = losses
        self.behind: dict[int, dict[str, torch.Tensor]] = {}

    def score(self, _: Any) -> HeldOut:
        self.behind[self.global_step] = weights(self)
        return HeldOut(self.held_out[self.global_step], None, 1, 1)

    def matches(self, step: int) -> bool:
        return all(torch.equal(value, self.behind[step][name]) for name, value in self.state_dict().items())


def trained(
    module: Seen, folder: Path, *watchers: Any, steps: int, every: int | None = 2, **options: Any
) -> tuple[pl.Trainer, list[tuple[int, float]]]:
    """Fit, and the points of the held-out loss."""
    logger = Recorder()
    callbacks = [*watchers, HeldOutLoss(module.score, every, watchers), *options.pop("callbacks", ())]
    trainer = run(module, callbacks, folder, steps=steps, logger=logger, **options)
    return trainer, [(step, value) for step, key, value in logger.points if key == "val/response_loss"]


def test_it_is_measured_every_so_many_steps_and_at_the_end_only_for_a_watcher(tmp_path: Path) -> None:
    losses = {step: float(step) for step in range(1, 45)}
    accumulated: dict[str, Any] = {"accumulate_grad_batches": 2}  # 20 batches: an epoch of 10 steps
    _, points = trained(Seen(losses), tmp_path, steps=12, every=4, **accumulated)
    assert points == [(4, 4.0), (8, 8.0), (10, 10.0)]
    _, points = trained(Seen(losses), tmp_path, HeldOutEarlyStop(patience=9), steps=12, every=4, **accumulated)
    assert points == [(4, 4.0), (8, 8.0), (10, 10.0), (12, 12.0)]
    _, points = trained(Seen(losses), tmp_path, steps=12, every=None, **accumulated)
    assert points == [(10, 10.0)]


def test_patience_counts_measurements_that_do_not_improve_by_more_than_delta(tmp_path: Path) -> None:
    # 3.0 and 2.5 improve; 2.45 by too little, 2.6 not; 2.3 does; the three behind it do not
    losses = dict(zip(range(2, 30, 2), [3.0, 2.5, 2.45, 2.6, 2.3, 2.25, 2.4, 2.21, 1.0], strict=False))
    stop = HeldOutEarlyStop(patience=3, min_delta=0.1)
    trainer, points = trained(Seen(losses), tmp_path, stop, steps=19)
    assert trainer.global_step == stop.stopped_at == points[-1][0] == 16


def test_a_measurement_that_is_not_a_number_is_no_improvement(tmp_path: Path) -> None:
    stop, store = HeldOutEarlyStop(patience=2), CheckpointStore(tmp_path / "checkpoints")
    best, module = BestWeights(store), Seen({2: math.nan, 4: math.nan})
    trainer, _ = trained(module, tmp_path, best, stop, steps=19, enable_checkpointing=True)
    assert trainer.global_step == 4
    assert best.step is None
    best.restore(trainer, module)
    assert module.matches(4)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def kept(store: CheckpointStore) -> Iterator[int]:
    return (int(folder.name.removeprefix("step-")) for folder in sorted((store.folder / "best").iterdir()))


LOSSES = {1: 5.0, 2: 4.0, 3: 3.0, 4: 3.5, 5: 2.0, 6: 2.0, 7: 6.0}


def saving(store: CheckpointStore, every: int) -> dict[str, Any]:
    return {"every": 1, "enable_checkpointing": True, "callbacks": [StepCheckpoint(store, every)]}


def test_the_weights_of_the_lowest_loss_are_kept_and_put_back(tmp_path: Path, store: CheckpointStore) -> None:
    best, module = BestWeights(store), Seen(LOSSES)
    trainer, _ = trained(module, tmp_path, best, steps=7, **saving(store, 100))
    assert (best.step, best.loss) == (5, 2.0), "the first of two that are as low"
    assert list(kept(store)) == [5]
    assert not module.matches(5)
    best.restore(trainer, module)
    assert module.matches(5)


def test_best_weights_stay_as_long_as_a_checkpoint_knows_them(tmp_path: Path, store: CheckpointStore) -> None:
    """A fit that is killed behind step 7 resumes from 4 where that of 6 is damaged, and finds the best of step 3."""
    whole = Seen(LOSSES)
    trained(whole, tmp_path, BestWeights(store), steps=7, **saving(store, 2))
    assert list(kept(store)) == [3, 5], "the checkpoints are those of 4 and 6"
    (store.folder / "best/step-00000005/full.ckpt").write_bytes(b"damaged")
    good = store.newest_good()
    assert good is not None
    assert good.parent.name == "step-00000004"

    worse = dict.fromkeys(range(1, 8), 9.0)
    module, best = Seen(worse), BestWeights(store)
    trainer, points = trained(module, tmp_path, best, steps=7, ckpt_path=good, **saving(store, 2))
    assert [step for step, _ in points] == [5, 6, 7]
    assert list(kept(store)) == [3]
    best.restore(trainer, module)
    assert all(torch.equal(value, whole.behind[3][name]) for name, value in module.state_dict().items())


def test_a_fit_that_was_over_is_put_back_to_its_best_as_well(tmp_path: Path, store: CheckpointStore) -> None:
    whole = Seen(LOSSES)
    trained(whole, tmp_path, BestWeights(store), steps=7, **saving(store, 7))
    module, best = Seen({}), BestWeights(store)
    trainer, points = trained(module, tmp_path, best, steps=7, ckpt_path=store.newest_good(), **saving(store, 7))
    assert (module.steps, points) == (0, [])
    best.restore(trainer, module)
    assert all(torch.equal(value, whole.behind[5][name]) for name, value in module.state_dict().items())


def test_a_stage_that_starts_over_forgets_what_was_best(tmp_path: Path, store: CheckpointStore) -> None:
    trained(Seen(LOSSES), tmp_path, BestWeights(store), steps=3, **saving(store, 100))
    assert list(kept(store)) == [3]
    assert store.newest_good() is None
    trained(Seen({1: 1.0, 2: 9.0}), tmp_path, BestWeights(store), steps=2, **saving(store, 100))
    assert list(kept(store)) == [1]


def test_damaged_best_weights_are_not_taken_for_the_result(tmp_path: Path, store: CheckpointStore) -> None:
    best, module = BestWeights(store), Seen(LOSSES)
    trainer, _ = trained(module, tmp_path, best, steps=7, **saving(store, 100))
    file = store.folder / "best/step-00000005/full.ckpt"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(RunFailure, match=r"the best weights, of step 5, are damaged: full.ckpt differs"):
        best.restore(trainer, module)


def test_measuring_is_no_part_of_a_steps_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class Slow(Seen):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            clock[0] += 1.0
            return super().training_step(batch, batch_idx)

        def score(self, model: Any) -> HeldOut:
            clock[0] += 100.0
            return super().score(model)

    for name in ("throughput", "held_out_loss"):
        monkeypatch.setattr(f"uniattn_pl.training.callbacks.{name}.time.perf_counter", lambda: clock[0])
    throughput, module = Throughput(), Slow(LOSSES)
    run(module, [throughput, HeldOutLoss(module.score, 1)], tmp_path, steps=4)
    assert len(module.behind) == 3
    assert throughput.step_seconds == 1.0


def test_a_decision_to_stop_is_in_the_checkpoint(tmp_path: Path, store: CheckpointStore) -> None:
    options, losses = saving(store, 1), {1: 1.0, 2: 2.0}
    trained(Seen(losses), tmp_path, HeldOutEarlyStop(patience=1), steps=9, **options)
    second = HeldOutEarlyStop(patience=1)
    assert isinstance(second, EarlyStop)
    trainer, points = trained(Seen(losses), tmp_path, second, steps=9, ckpt_path=store.newest_good(), **options)
    assert (trainer.global_step, second.stopped_at, points) == (2, 2, [])
    sums = json.loads((store.folder / "step-00000002/checksums.json").read_text())
    assert not [name for name in sums if "best" in name]
