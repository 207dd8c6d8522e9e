"""Tokens per second, step time and model FLOPs utilisation (MFU) of a training run."""

from __future__ import annotations

import statistics
import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from uniattn_pl.families.routed_experts import routed_experts
from uniattn_pl.plan.card_rates import card_of_device


def peak_flops(device: torch.device) -> float | None:
    """Return the device's dense half-precision peak in FLOP/s, or None where it is not known (all CPUs)."""
    if device.type != "cuda":
        return None
    card = card_of_device(torch.cuda.get_device_name(device))
    return None if card is None else card.flops_per_s


class Throughput(pl.Callback):
    """Measures what a fit really processes and logs it through the Trainer's logger.

    A step lasts from the end of the previous optimizer step to its own end, so waiting for data counts;
    medians keep out the slow first step and checkpoints. Tokens are those that are no padding.
    FLOPs per token are 2 per parameter forward, 2 backward, and 2 for each parameter that trains; of routed experts
    those count that serve a token.

    Args:
        prefix: put before the metric names, for instance "stage1/".
        window: optimizer steps over which the logged medians run.

    Attributes:
        tokens_per_second: median over the whole fit so far, all devices together; None before the first step.
        step_seconds: median duration of an optimizer step; None before the first step.
    """

    def __init__(self, prefix: str = "", window: int = 20) -> None:
        self.prefix, self.window = prefix, window
        self._seconds: list[float] = []
        self._rates: list[float] = []
        self._tokens: int | Tensor = 0
        self._last_end = 0.0
        self._seen = 0
        self._flops_per_token = 0.0
        self._peak: float | None = None

    @property
    def tokens_per_second(self) -> float | None:
        return statistics.median(self._rates) if self._rates else None

    @property
    def step_seconds(self) -> float | None:
        return statistics.median(self._seconds) if self._seconds else None

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": list(self._seconds), "rates": list(self._rates)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds, self._rates = list(state_dict["seconds"]), list(state_dict["rates"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._last_end, self._tokens, self._seen = time.perf_counter(), 0, trainer.global_step
        self._flops_per_token = flops_per_token(pl_module)
        self._peak = peak_flops(pl_module.device)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tokens = self._tokens + _tokens_of(batch)
        if trainer.global_step == self._seen:
            return
        self._seen = trainer.global_step
        now = time.perf_counter()
        seconds, tokens = now - self._last_end, self._tokens
        self._tokens, self._last_end = 0, now
        self._seconds.append(seconds)
        self._rates.append(float(tokens) * trainer.world_size / seconds)
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log(trainer)

    def leave_out(self, seconds: float) -> None:
        """Have the step that has begun last so much less: the time went into something else."""
        self._last_end += seconds

    def _log(self, trainer: pl.Trainer) -> None:
        rate, seconds = (statistics.median(values[-self.window :]) for values in (self._rates, self._seconds))
        steps_left = trainer.estimated_stepping_batches - trainer.global_step
        metrics = {"tokens_per_second": rate, "step_seconds": seconds, "seconds_left": steps_left * seconds}
        if self._peak is not None:
            metrics["mfu"] = rate * self._flops_per_token / (self._peak * trainer.world_size)
        for logger in trainer.loggers:
            logger.log_metrics({self.prefix + name: value for name, value in metrics.items()}, trainer.global_step)


def flops_per_token(module: nn.Module) -> float:
    """FLOPs of a training step for one token, as `Throughput` counts them."""
    shares = {p: found.per_token / found.count for found in routed_experts(module) for p in found.weights.values()}
    return sum((6.0 if p.requires_grad else 4.0) * _weights(p) * shares.get(p, 1.0) for p in module.parameters())


def _weights(parameter: nn.Parameter) -> int:
    """How many weights a parameter holds; in 4 bits two to a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else int(state.shape.numel())


def _tokens_of(batch: Any) -> int | Tensor:
    """Tokens of a batch that are not padding; left a tensor when reading it would wait for the device."""
    if "num_tokens" in batch:
        return int(batch["num_tokens"])
    if "attention_mask" in batch:
        mask: Tensor = batch["attention_mask"].sum()
        return mask
    return int(batch["input_ids"].numel())
