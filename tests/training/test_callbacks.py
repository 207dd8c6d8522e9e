"""Each callback in a plain Trainer on a plain module: it must work outside the runner."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from tests.trainers import fit
from torch import nn

from uniattn_pl.errors import UserError
from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.resilience.failures import TrainingDivergedError
from uniattn_pl.training.callbacks.compensation_init import CompensationInit
from uniattn_pl.training.callbacks.divergence_stop import DivergenceStop
from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
from uniattn_pl.training.callbacks.provenance import Provenance
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.stage_freezing import StageFreezing
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.callbacks.throughput import Throughput
from uniattn_pl.training.callbacks.training_progress import TrainingProgress


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.o_proj = nn.Linear(4, 4, bias=False)
        self.w_c = nn.Linear(4, 4, bias=False)


class Regression(pl.LightningModule):
    """A module with a parameter named like a compensation, and losses that can be scripted."""

    def __init__(self, losses: list[float] | None = None) -> None:
        super().__init__()
        self.self_attn = Attention()
        self.losses, self.steps = losses, 0

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        x = batch["x"]
        loss = (self.self_attn.o_proj(x) + self.self_attn.w_c(x) - x).pow(2).mean()
        if self.losses is not None:
            loss = 0 * loss + self.losses[self.global_step]
        self.steps += 1
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


class Recorder(pl.loggers.logger.DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.points: list[tuple[int, str, float]] = []
        self.flushed_at: list[int] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.points += [(step or 0, key, value) for key, value in metrics.items()]

    def flush(self) -> None:
        self.flushed_at.append(len(self.points))


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 4:] = 0
    return [{"x": torch.randn(2, 4, generator=generator), "attention_mask": mask} for _ in range(count)]


def run(
    module: pl.LightningModule, callbacks: list[pl.Callback], folder: Path, *, steps: int = 4, **options: Any
) -> pl.Trainer:
    return fit(module, batches(20), folder, steps=steps, callbacks=callbacks, **options)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("stage", "trained"), [(1, {"w_c"}), (2, {"w_c", "o_proj"})])
def test_stage_freezing_trains_only_what_the_stage_says(stage: int, trained: set[str], tmp_path: Path) -> None:
    module = Regression()
    before = weights(module)
    run(module, [StageFreezing(stage)], tmp_path)
    changed = {
        name.split(".")[1] for name, value in module.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == trained


def test_stage_freezing_refuses_stage_1_without_a_compensation(tmp_path: Path) -> None:
    module = Regression()
    del module.self_attn.w_c
    with pytest.raises(UserError, match="has none"):
        run(module, [StageFreezing(1)], tmp_path)


def test_ema_stops_when_the_average_stops_falling(tmp_path: Path) -> None:
    losses = [5.0, 4.0, 3.0, *[3.0] * 100]
    stop = EMAEarlyStop(decay=0.5, patience=3, min_delta=0.3)
    trainer = run(Regression(losses), [stop], tmp_path, steps=100)
    # averages 5, 4.5, 3.75, 3.375 improve on the best by more than 0.3; 3.19 and 3.09 do not; the seventh,
    # 3.05, does (on 3.375); the three after it, 3.02, 3.01 and 3.01, do not
    assert trainer.global_step == stop.stopped_at == 10


def test_ema_counts_optimizer_steps_not_micro_batches(tmp_path: Path) -> None:
    stop = EMAEarlyStop(decay=0.5, patience=3, min_delta=0.3)
    trainer = run(Regression([3.0] * 100), [stop], tmp_path, steps=100, accumulate_grad_batches=3)
    assert trainer.global_step == 4
    assert stop.ema == pytest.approx(3.0)


def test_ema_honours_a_restored_stop(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    losses = [3.0] * 100
    first = EMAEarlyStop(decay=0.5, patience=3, min_delta=0.3)
    run(Regression(losses), [first, StepCheckpoint(store, 1)], tmp_path, steps=100, enable_checkpointing=True)
    module = Regression(losses)
    second = EMAEarlyStop(decay=0.5, patience=3, min_delta=0.3)
    trainer = run(module, [second], tmp_path, steps=100, ckpt_path=store.newest_good())
    assert (trainer.global_step, module.steps, second.stopped_at) == (4, 0, 4)
    assert second.state_dict() == first.state_dict()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_stops_and_spares_the_checkpoint(value: float, tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    module = Regression([1.0, 1.0, value, 1.0])
    with pytest.raises(TrainingDivergedError, match=r"at step 3; the last good checkpoint is .*step-00000002"):
        run(module, [DivergenceStop(), StepCheckpoint(store, 1)], tmp_path, enable_checkpointing=True)
    good = store.newest_good()
    assert good is not None
    assert torch.load(good, weights_only=True)["global_step"] == 2


def test_step_checkpoint_never_saves_between_micro_batches(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    options: dict[str, Any] = {"accumulate_grad_batches": 2, "enable_checkpointing": True}
    run(Regression(), [StepCheckpoint(store, 1)], tmp_path, steps=2, **options)

    class Saves(StepCheckpoint):
        micro_batches: ClassVar[list[int]] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            before = store.newest()
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if store.newest() != before:
                self.micro_batches.append(batch_idx)

    saves = Saves(store, 1)
    run(Regression(), [saves], tmp_path, steps=4, ckpt_path=store.newest_good(), **options)
    assert saves.micro_batches == [5, 7]


def test_step_metrics_are_written_before_the_checkpoint(tmp_path: Path) -> None:
    logger = Recorder()
    losses = [4.0, 3.0, 2.0, 1.0]
    run(
        Regression(losses),
        [StepMetrics("train/"), StepCheckpoint(CheckpointStore(tmp_path / "checkpoints"), 2)],
        tmp_path,
        logger=logger,
        enable_checkpointing=True,
        accumulate_grad_batches=2,
    )
    assert [(step, value) for step, key, value in logger.points if key == "train/loss"] == list(enumerate(losses, 1))
    # at the checkpoints of steps 2 and 4, that many losses had been written
    assert logger.flushed_at == [2, 4]


def test_throughput_counts_tokens_that_are_not_padding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 12 of 16 positions are tokens, two micro batches a step; steps take 1, 2, 3, ... seconds
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    clock = SimpleNamespace(perf_counter=lambda: next(ticks))
    monkeypatch.setattr("uniattn_pl.training.callbacks.throughput.time", clock)
    logger, throughput = Recorder(), Throughput("train/")
    run(Regression(), [throughput], tmp_path, logger=logger, accumulate_grad_batches=2)
    assert throughput.step_seconds == 2.5
    assert throughput.tokens_per_second == pytest.approx((24 / 2 + 24 / 3) / 2)
    assert next(value for _, key, value in logger.points if key == "train/tokens_per_second") == 24.0
    # four steps in all; those left take as long as the median of the others
    assert [value for _, key, value in logger.points if key == "train/seconds_left"] == [3.0, 3.0, 2.0, 0.0]
    assert not [key for _, key, _ in logger.points if "mfu" in key]  # the peak of a CPU is not known


def test_rng_states_survive_a_resume(tmp_path: Path) -> None:
    class Draws(Regression):
        def __init__(self) -> None:
            super().__init__()
            self.drawn: list[tuple[float, float, float]] = []

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            self.drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            return super().training_step(batch, batch_idx)

    store = CheckpointStore(tmp_path / "checkpoints")
    pl.seed_everything(7, verbose=False)
    whole = Draws()
    run(whole, [RngState(), StepCheckpoint(store, 2)], tmp_path, steps=3, enable_checkpointing=True)
    pl.seed_everything(8, verbose=False)
    resumed = Draws()
    run(resumed, [RngState()], tmp_path, steps=3, ckpt_path=store.newest_good())
    assert resumed.drawn == whole.drawn[2:]


def test_provenance_records_code_and_config_without_credentials(tmp_path: Path) -> None:
    config = {"tracking": {"uri": "mysql://me:hunter2@host/db"}, "name": "x"}
    for _ in range(2):
        run(Regression(), [Provenance(config)], tmp_path, steps=1)
    records = json.loads((tmp_path / Provenance.FILE_NAME).read_text())
    assert len(records) == 2
    assert records[0]["config"] == {"tracking": {"uri": "mysql://***@host/db"}, "name": "x"}
    assert torch.__version__.startswith(records[0]["packages"]["torch"])  # +cu128 is not in every wheel's version
    assert {"platform", "git", "python"} <= records[0].keys()


def test_progress_prints_plain_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Regression([2.5] * 4), [Throughput(), TrainingProgress("stage 9")], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith("stage 9  4/4  loss 2.5000")
    assert "tokens/s" in lines[-1]


def tiny_model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=32, num_hidden_layers=3, max_position_embeddings=32, **sizes))


class Hosting(Regression):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.self_attn.parameters(), lr=0.1)


def test_compensation_init_fits_once_and_never_after_a_resume(tmp_path: Path) -> None:
    from uniattn_pl.modeling.conversion.convert import apply_architecture

    tokens = torch.randint(0, 32, (4, 12), generator=torch.Generator().manual_seed(1))
    samples = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]

    def hosted() -> tuple[Hosting, torch.Tensor]:
        model = apply_architecture(tiny_model(), "uniattn", superblock_size=2, num_superblocks=1)
        return Hosting(model), model.model.layers[2].self_attn.w_c.weight

    store = CheckpointStore(tmp_path / "checkpoints")
    first, fitted = hosted()
    callback = CompensationInit(tiny_model, samples, samples, initialiser="least_squares")
    run(first, [callback, StepCheckpoint(store, 1)], tmp_path, steps=1, enable_checkpointing=True)
    assert fitted.abs().max() > 0
    assert callback.report is not None
    assert callback.report.error_after < callback.report.error_before

    second, resumed = hosted()
    callback = CompensationInit(tiny_model, samples, samples, initialiser="zero")
    run(second, [callback], tmp_path, steps=2, ckpt_path=store.newest_good())
    assert torch.equal(resumed, fitted)
    assert callback.report is None


class Tuned(Hosting):
    """Trains the whole model in one Trainer, whose optimizer is built before any callback runs."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        ids = torch.arange(12)[None]
        return self.model(input_ids=ids, labels=ids, use_cache=False).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1)


def test_what_compensation_init_has_fitted_trains_on_in_the_same_trainer(tmp_path: Path) -> None:
    from uniattn_pl.modeling.conversion.convert import apply_architecture

    tokens = torch.randint(0, 32, (4, 12), generator=torch.Generator().manual_seed(1))
    samples = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]
    model = apply_architecture(tiny_model(), "uniattn", superblock_size=2, num_superblocks=1)
    start = model.model.layers[2].self_attn.o_proj.weight.detach().clone()
    fitted: dict[str, torch.Tensor] = {}

    class Fitted(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            fitted.update({name: p.detach().clone() for name, p in model.model.layers[2].self_attn.named_parameters()})

    callback = CompensationInit(tiny_model, samples, samples, initialiser="joint_least_squares")
    run(Tuned(model), [callback, Fitted()], tmp_path, steps=2)
    assert not torch.equal(fitted["o_proj.weight"], start), "calibration corrected W_o"
    for name, parameter in model.model.layers[2].self_attn.named_parameters():
        assert not torch.equal(parameter, fitted[name]), name
    torch.testing.assert_close(start, tiny_model().model.layers[2].self_attn.o_proj.weight, rtol=0, atol=0)


def test_compensation_init_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="apply_architecture"):
        run(Regression(), [CompensationInit(tiny_model, [], [])], tmp_path)


def test_ranks_are_chosen_before_a_trainer_has_its_optimizer(tmp_path: Path) -> None:
    from uniattn_pl.modeling.conversion.convert import apply_plan
    from uniattn_pl.plan import LayerPlan

    tokens = torch.randint(0, 32, (4, 12), generator=torch.Generator().manual_seed(1))
    samples = [{"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}]
    plan = LayerPlan.unmodified(3).reuse([2], 1, compensated=True).limit_rank("auto")
    model = apply_plan(tiny_model(), plan)
    callback = CompensationInit(tiny_model, samples, samples, rank_keeps=0.5)
    with pytest.raises(UserError, match=r"call initialise\(model\) before Trainer.fit, or give W_c a rank"):
        run(Tuned(model), [callback], tmp_path)
    report = callback.initialise(model)
    assert report.rows[0].rank is not None
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(Tuned(model), [callback], tmp_path, steps=1)
    factors = [f"model.layers.2.self_attn.w_c.{factor}.weight" for factor in ("down", "up")]
    assert all(not torch.equal(model.get_parameter(name), start[name]) for name in factors)
