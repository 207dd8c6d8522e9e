"""Times training steps in pairs and prints three ratios, with their median and spread.

a. a stage-2 UniAttn step / a full fine-tuning step of the unmodified model with stock SDPA (target <= 1.05)
b. a stage-1 step / a stage-2 step (target <= 0.6)
c. a stage-2 step in our Trainer, with callbacks and MLflow / the same in a bare PyTorch loop (target <= 1.03)

    python benchmarks/training.py --rounds 12

Everything runs in one process and every round times all four kinds of step once, in an order that rotates, so
that a slow moment of the machine hits all of them. All use the same loss, optimizer, clipping and schedule.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from transformers import PreTrainedModel

import uniattn_pl
from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.display.quiet_libraries import quiet_libraries
from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss
from uniattn_pl.modeling.loading.pretrained import load_model
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.tracking.stage_logger import StageLogger
from uniattn_pl.training.callbacks.divergence_stop import DivergenceStop
from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.callbacks.throughput import Throughput
from uniattn_pl.training.callbacks.training_progress import TrainingProgress
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.optimizers import build_optimizer
from uniattn_pl.training.schedule import WarmupDecay

WARM_UP = 2
BASELINE, STAGE1, STAGE2, LIGHTNING = "baseline, full fine-tune", "UniAttn, stage 1", "UniAttn, stage 2", "Lightning"
RATIOS = (
    ("a. stage 2 / baseline", STAGE2, BASELINE, 1.05),
    ("b. stage 1 / stage 2", STAGE1, STAGE2, 0.60),
    ("c. Lightning / bare loop", LIGHTNING, STAGE2, 1.03),
)


def main() -> None:
    options = arguments()
    quiet_libraries()
    batch, total = make_batch(options), options.rounds + WARM_UP
    bare = {
        BASELINE: bare_step(make_model(options, converted=False), 2, batch, total),
        STAGE1: bare_step(make_model(options, converted=True), 1, batch, total),
        STAGE2: bare_step(make_model(options, converted=True), 2, batch, total),
    }
    rounds = InterleavedRounds(batch, bare, total)
    run_trainer(make_model(options, converted=True), rounds)
    report(rounds.seconds, int(batch["attention_mask"].sum()))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--superblock-size", type=int, default=4)
    parser.add_argument("--num-superblocks", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=256, help="tokens per sequence; the second half is the response")
    parser.add_argument("--rounds", type=int, default=12)
    return parser.parse_args()


def make_batch(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, 200, (options.batch_size, options.length), generator=generator)
    labels = tokens.clone()
    labels[:, : options.length // 2] = -100
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def make_model(options: argparse.Namespace, *, converted: bool) -> PreTrainedModel:
    model = load_model(options.model, dtype=options.dtype).train()
    if converted:
        shape = {"superblock_size": options.superblock_size, "num_superblocks": options.num_superblocks}
        uniattn_pl.apply_architecture(model, "uniattn", **shape)
    return model


def bare_step(model: PreTrainedModel, stage: int, batch: dict[str, torch.Tensor], total: int) -> Callable[[], None]:
    """A training step in plain PyTorch that does what our module does, and reads its loss as every loop does."""
    freeze_for_stage(model, stage)
    trained = [p for p in model.parameters() if p.requires_grad]
    options = StageConfig()
    optimizer = build_optimizer(model, options)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, WarmupDecay(total, options.warmup_ratio, options.schedule))

    def step() -> None:
        scored = ScoredTokens.of(batch["labels"])
        loss = summed_response_loss(model, batch, scored) / len(scored.targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        loss.item()

    return step


class InterleavedRounds:
    """A data loader that times: between two batches of the Trainer it runs the bare steps.

    A Trainer's step lasts from handing it a batch until it asks for the next one, everything included.
    """

    def __init__(self, batch: dict[str, torch.Tensor], bare: dict[str, Callable[[], None]], total: int) -> None:
        self.batch, self.bare, self.total = batch, bare, total
        self.seconds: dict[str, list[float]] = {name: [] for name in (*bare, LIGHTNING)}

    def __len__(self) -> int:
        return self.total

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        kinds = list(self.seconds)
        for number in range(self.total):
            turn = number % len(kinds)
            for kind in kinds[turn:] + kinds[:turn]:
                started = time.perf_counter()
                if kind == LIGHTNING:
                    yield self.batch
                else:
                    self.bare[kind]()
                if number >= WARM_UP:
                    self.seconds[kind].append(time.perf_counter() - started)


def run_trainer(model: PreTrainedModel, rounds: InterleavedRounds) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = TrackingConfig(uri=f"sqlite:///{folder}/mlflow.db", artifact_location=str(Path(folder, "artifacts")))
        run = MLflowRun.open(store, name="benchmark", fit_id="benchmark", run_id=None, tags={}, folder=Path(folder))
        callbacks: list[Any] = [
            DivergenceStop(),
            EMAEarlyStop(patience=10_000),
            Throughput(),
            StepMetrics(),
            RngState(),
        ]
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=len(rounds),
            max_epochs=-1,
            logger=StageLogger(run, 0),
            callbacks=[*callbacks, TrainingProgress("benchmark", Console(stderr=True))],
            log_every_n_steps=1,
            limit_val_batches=0,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(PostTrainingModule(model, stage=2, options=StageConfig()), rounds)


def report(seconds: dict[str, list[float]], tokens: int) -> None:
    for name, values in seconds.items():
        middle = statistics.median(values)
        print(f"{name:<26} {middle:7.3f} s a step  {tokens / middle:7,.0f} tokens/s  ({spread(values)})")
    for label, above, below, target in RATIOS:
        ratios = [a / b for a, b in zip(seconds[above], seconds[below], strict=False)]
        middle = statistics.median(ratios)
        verdict = "met" if middle <= target else "MISSED"
        print(f"{label:<26} {middle:7.3f}  ({spread(ratios)})  target <= {target:.2f}: {verdict}")


def spread(values: list[float]) -> str:
    quarters = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return f"quartiles {quarters[0]:.3f} to {quarters[2]:.3f}, n={len(values)}"


if __name__ == "__main__":
    main()
