"""A few optimizer steps of a stage in a plain Trainer, on made-up sequences."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.lightning_module import PostTrainingModule


class StepLosses(pl.loggers.logger.DummyLogger):
    """Keeps the loss of every optimizer step."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[float] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.losses += [value for name, value in metrics.items() if name == "train/loss"]


def train(
    module: PostTrainingModule,
    *,
    device: str,
    steps: int,
    batch: int,
    length: int,
    vocabulary: int,
    callbacks: Sequence[pl.Callback] = (),
    strategy: Any = "auto",
    precision: Any = "32-true",
) -> list[float]:
    """Fit `module` for `steps` on random sequences, every second half of which is the response; the step's losses."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for _ in range(steps):
        tokens = torch.randint(0, vocabulary, (batch, length), generator=generator)
        labels = tokens.clone()
        labels[:, : length // 2] = -100
        data.append({"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels})
    logger = StepLosses()
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator=device,
            devices=1,
            strategy=strategy,
            precision=precision,
            max_steps=steps,
            max_epochs=-1,
            logger=logger,
            callbacks=[StepMetrics(), *callbacks],
            log_every_n_steps=1,
            limit_val_batches=0,
            use_distributed_sampler=False,  # it would put the sequences in another order
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(data, batch_size=None))  # type: ignore[arg-type]
    return logger.losses
