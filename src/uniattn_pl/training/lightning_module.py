"""The LightningModule that post-trains a converted model in one of the two stages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.losses.response_loss import ScoredTokens, summed_response_loss
from uniattn_pl.losses.router_loss import adds_router_loss, coefficient, router_logits_of, router_loss
from uniattn_pl.plan.optimizer_memory import ADAMW
from uniattn_pl.training.callbacks.sharding import Sharding
from uniattn_pl.training.callbacks.stage_freezing import freeze_for_stage
from uniattn_pl.training.frozen_weights import halve_frozen
from uniattn_pl.training.objectives.objective import LabelObjective, Objective
from uniattn_pl.training.optimizers import build_optimizer
from uniattn_pl.training.schedule import WarmupDecay

# Sums of token losses are divided by this before backward so that float16 and bfloat16 gradients stay in range
# whatever the batch; a power of two, so that undoing it is exact.
TOKENS_PER_GRADIENT_UNIT = 256.0
OBJECTIVE = "objective"  # its state in a checkpoint


class PostTrainingModule(pl.LightningModule):
    """Hosts a converted Hugging Face model: an objective, an optimizer of what trains in this stage, a schedule.

    The loss of an optimizer step is the mean over **all** tokens that count in its global batch (every
    micro batch, every rank), not a mean of micro-batch means: micro batches backpropagate sums, and the
    gradients are divided by the token count once it is known, before clipping.

    Where routers have a loss of their own, every such token brings that of its micro batch: a step adds the mean
    over micro batches, weighted by their tokens, times the family's coefficient.

    Its checkpoints hold what trains; frozen weights are where `model` took them from.

    Args:
        model: the model, or a function that returns it (called once, in `configure_model`). A peft model trains what
            it has unfrozen itself.
        stage: 1 trains only W_c (and what the objective trains besides), 2 everything.
        options: learning rates, weight decay and schedule of this stage.
        optimizer: one of `OPTIMIZERS`.
        max_grad_norm: clip the global gradient norm to this; None never clips.
        objective: what is minimised; default: the loss of response tokens alone.
        router_loss: add the load-balancing loss of a mixture of experts; None: if its config asks for it.
        halves_frozen: keep frozen matrices in bfloat16 where that loses nothing; under bfloat16 autocast.
        fill: gives a model without weights (on the meta device) its own after it was sharded.

    Attributes:
        sharding: set by that callback where the strategy shards.
        step_loss: the objective's loss of the last optimizer step (scalar tensor, equal on all ranks).
        step_terms: the mean of each of the objective's terms in that step, by name.
        step_router_loss: the routers' loss of that step, without its coefficient; None where it is not added.
        grad_norm: gradient norm of the last optimizer step before clipping, or None when not clipped.
    """

    def __init__(
        self,
        model: PreTrainedModel | Callable[[], PreTrainedModel],
        *,
        stage: int,
        options: StageConfig,
        optimizer: str = ADAMW,
        max_grad_norm: float | None = 1.0,
        objective: Objective | None = None,
        router_loss: bool | None = None,
        halves_frozen: bool = False,
        fill: Callable[[PreTrainedModel], None] | None = None,
    ) -> None:
        super().__init__()
        self.strict_loading = False
        self.stage, self.options, self.max_grad_norm = stage, options, max_grad_norm
        self.model: PreTrainedModel | None = model if isinstance(model, nn.Module) else None  # type: ignore[assignment]
        self._build = None if isinstance(model, nn.Module) else model
        self._fill, self.objective = fill, objective or LabelObjective()
        self._optimizer_name, self._halves_frozen = optimizer, halves_frozen
        self._router_loss, self._router_coefficient = router_loss, 0.0
        self.sharding: Sharding | None = None
        self.step_loss: Tensor | None = None
        self.step_terms: dict[str, Tensor] = {}
        self.step_router_loss: Tensor | None = None
        self.grad_norm: Tensor | None = None
        self._sums: list[Tensor] = []
        self._term_sums: list[Tensor] = []
        self._router_sums: list[Tensor] = []
        self._tokens = 0

    def configure_model(self) -> None:
        """Build the model if a builder was given, freeze what does not train in this stage, and shard it."""
        if self.model is None and self._build is not None:
            self.model, self._build = self._build(), None
        if not hasattr(self.hosted, "peft_config"):
            besides = self.objective.trained_besides(self.hosted) if self.stage == 1 else ()
            freeze_for_stage(self.hosted, self.stage, besides)
        if self._halves_frozen:
            halve_frozen(self.hosted, self.trainer.strategy.root_device)
        self.hosted.train()  # from_pretrained returns models in eval mode
        if adds_router_loss(self.hosted, self._router_loss):
            self._router_coefficient = coefficient(self.hosted)
        shard: Callable[[nn.Module], None] | None = None
        if self.sharding is not None:
            shard = partial(self.sharding.shard, mesh=self.device_mesh["data_parallel"])  # type: ignore[index]
            shard(self.hosted)
        self.objective.begin(self.hosted, shard)
        if self._fill is not None:
            self._fill(self.hosted)
            self._fill = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out frozen weights: they never change in this stage."""
        trained = {name for name, tensor in self.state_dict(keep_vars=True).items() if tensor.requires_grad}
        states = checkpoint.get("state_dict", {})
        checkpoint["state_dict"] = {name: tensor for name, tensor in states.items() if name in trained}
        if self.objective.state():
            checkpoint[OBJECTIVE] = self.objective.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Give the objective back what it knew."""
        if OBJECTIVE in checkpoint:
            self.objective.load_state(checkpoint[OBJECTIVE])

    @property
    def hosted(self) -> PreTrainedModel:
        """The Hugging Face model. Raises RuntimeError before `configure_model` built it."""
        if self.model is None:
            raise RuntimeError("the model is built in configure_model, which the Trainer has not called yet.")
        return self.model

    def on_before_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Find the tokens that count while the batch is on the CPU, where looking at it does not stall a GPU."""
        tokens = int(batch["num_tokens"] if "num_tokens" in batch else batch["attention_mask"].sum())
        return {**batch, **self.objective.tokens_of(batch), "num_tokens": tokens}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the scaled loss of one micro batch; `batch` as the data module makes it."""
        with router_logits_of(self.hosted, wanted=self._router_coefficient != 0) as router_logits:
            loss = self.objective.loss(self.hosted, batch)
        total, tokens = loss.total, loss.tokens
        self._sums.append(total.detach())
        self._term_sums.append(torch.cat([loss.sums.to(total), total.new_tensor([float(n) for n in loss.counts])]))
        self._tokens += tokens
        if router_logits:
            of_router = tokens * router_loss(self.hosted, router_logits, batch)
            self._router_sums.append(of_router.detach())
            total = total + self._router_coefficient * of_router
        return total / TOKENS_PER_GRADIENT_UNIT

    def on_train_end(self) -> None:
        """Give back a teacher's memory, and what the objective has set."""
        self.objective.end()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Turn summed gradients into the gradient of the mean over the global batch's tokens."""
        trainer = self.trainer
        total = torch.stack(self._sums).sum()
        of_routers = torch.stack(self._router_sums).sum().to(total) if self._router_sums else total.new_zeros(())
        counts = torch.stack([total, total.new_tensor(float(self._tokens)), of_routers])
        counts = torch.cat([counts, torch.stack(self._term_sums).sum(0)])
        if trainer.world_size > 1:
            counts = trainer.strategy.reduce(counts, reduce_op="sum")
        self._sums, self._term_sums, self._router_sums, self._tokens = [], [], [], 0
        tokens = counts[1].clamp_min(1.0)
        self.step_router_loss = counts[2] / tokens if self._router_coefficient else None
        sums, brought = counts[3:].chunk(2) if self.objective.terms else (counts[3:], counts[3:])
        self.step_terms = dict(zip(self.objective.terms, sums / brought.clamp_min(1.0), strict=True))
        self.step_loss = self.objective.settle(counts[0] / tokens, self.step_terms)
        # Lightning divided by the accumulated micro batches, DDP averages over ranks; both are undone here
        scale = TOKENS_PER_GRADIENT_UNIT * trainer.accumulate_grad_batches * trainer.world_size / tokens
        gradients = [_local(p.grad) for p in self.hosted.parameters() if p.grad is not None]
        for device_and_dtype in _grouped(gradients):
            torch._foreach_mul_(device_and_dtype, scale.to(device_and_dtype[0].dtype))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by global norm and keep the norm, which Lightning would throw away."""
        limit = self.max_grad_norm if gradient_clip_val is None else float(gradient_clip_val)
        if limit:
            trained = [p for p in self.hosted.parameters() if p.requires_grad]
            norm = torch.nn.utils.clip_grad_norm_(trained, limit)
            self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Log the mean response loss as `val/response_loss`, weighted by response tokens."""
        scored = ScoredTokens.of(batch["labels"])
        tokens = max(1, scored.targets.numel())
        loss = summed_response_loss(self.hosted, batch, scored) / tokens
        self.log("val/response_loss", loss, batch_size=tokens, sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer over what trains; the schedule counts this stage's steps, for all of its groups."""
        optimizer = build_optimizer(self.hosted, self.options, self._optimizer_name, scaled=self._uses_scaler())
        total = int(self.trainer.estimated_stepping_batches)
        factor = WarmupDecay(total, self.options.warmup_ratio, self.options.schedule)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _uses_scaler(self) -> bool:
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None


def _local(tensor: Tensor) -> Tensor:
    """The part of a gradient that this rank holds, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _grouped(tensors: list[Tensor]) -> list[list[Tensor]]:
    """Tensors by (device, dtype), as the foreach kernels want them."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return list(groups.values())
