"""What the phases of one fit share: config, plan, data, folders, the manifest and the MLflow run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.calibration.solvers import DEFAULT_RIDGE
from uniattn_pl.config import LoadedConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.held_out import HeldOut, held_out_metrics
from uniattn_pl.modeling.conversion.convert import converted_copy
from uniattn_pl.modeling.loading.layer_offload import Residency
from uniattn_pl.modeling.loading.pretrained import empty_model, load_model, load_shape, load_tokenizer, resolve_dtype
from uniattn_pl.modeling.loading.sharded_weights import skeleton
from uniattn_pl.modeling.lora import check_target_modules
from uniattn_pl.plan import LayerPlan, costs
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.resilience.preemption import Preemption
from uniattn_pl.search.model_measurements import ModelMeasurements
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.training.memory_estimate import WEIGHT_DTYPES
from uniattn_pl.training.strategies import build_strategy, resolve_strategy

MEASURED_TOKENS = 2000
SEARCH_FOLDER = "search"
MODEL_SHARE = 0.6  # of a device's memory, what a model in full may take; activations and statistics need the rest


class FitSession:
    """Everything of a fit that is not a decision: opened by the runner, read by the phases.

    Args:
        loaded: the checked experiment.
        manifest: how far the fit has come.
        console: where people read; rank 0's.
        cluster: the ranks that run the fit together; default: this process alone.
        preemption: what has been told to end.

    Raises:
        UserError: the plan does not fit the model, the data cannot be read, or batch sizes do not divide.
    """

    def __init__(
        self,
        loaded: LoadedConfig,
        manifest: Manifest,
        console: Console,
        cluster: Cluster | None = None,
        preemption: Preemption | None = None,
    ) -> None:
        self.loaded, self.config, self.manifest, self.console = loaded, loaded.config, manifest, console
        self.cluster = cluster or Cluster.alone(loaded.config)
        self.preemption = preemption or Preemption()
        self.run: MLflowRun | None = None
        model, training = self.config.model, self.config.training
        origin: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        self._origin = origin
        self.shape = load_shape(model.source, **origin)
        loaded.architecture.check(self.shape)
        if not loaded.architecture.measured:
            self.plan.check(self.shape)
        if training.lora.enabled:
            check_target_modules(empty_model(model.source, **origin), training.lora.target_modules)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model.source, **origin)
        world_size = self.cluster.world_size
        self.accumulate = _accumulated(training.batch_size, training.micro_batch_size, world_size)
        self.dtype = resolve_dtype(WEIGHT_DTYPES.get(training.precision, model.dtype))
        self.strategy = resolve_strategy(self.config, self.cluster, self.shape)
        self.residency = Residency(self.device) if self._too_large() else None
        self.data = InstructionDataModule(
            self.config.data,
            self.tokenizer,
            batch_size=training.batch_size,
            micro_batch_size=training.micro_batch_size,
            eval_batch_size=self.config.evaluation.batch_size,
            seed=self.config.seed,
            rank=self.cluster.rank,
            world_size=world_size,
        )
        self.data.setup()
        skipped = self.config.calibration.skip_samples
        if skipped >= self.data.num_train_rows:
            raise UserError(
                f"calibration.skip_samples={skipped} leaves no row to calibrate on: there are "
                f"{self.data.num_train_rows} training rows."
            )

    @cached_property
    def plan(self) -> LayerPlan:
        """The plan this fit is about: the recorded one, else compiled, else chosen now by measurement."""
        recorded = self.manifest.results.get("prepare", {}).get("plan")
        if recorded is not None:
            return LayerPlan.from_dict(recorded)
        architecture = self.loaded.architecture
        if not architecture.measured:
            return architecture.compile(self.shape).limit_rank(self.config.calibration.rank)
        chosen: dict[str, Any] | None = None
        if self.cluster.is_main:
            with ProgressReporter(f"choosing layers ({architecture.name})", self.console) as progress:
                chosen = architecture.choose(self.shape, self.measurements(progress)).to_dict()
        plan = LayerPlan.from_dict(self.cluster.broadcast(chosen or {})).limit_rank(self.config.calibration.rank)
        plan.check(self.shape)
        return plan

    def measurements(self, progress: ProgressReporter) -> ModelMeasurements:
        """What can be measured on the original with training tokens, kept in the run folder."""
        ridge = self.config.calibration.ridge
        return ModelMeasurements(
            self.original,
            self.shape,
            self.train_tokens,
            num_tokens=MEASURED_TOKENS,
            ridge=DEFAULT_RIDGE if ridge == "auto" else float(ridge),
            folder=self.folder / SEARCH_FOLDER,
            progress=progress.update,
        )

    def train_tokens(self, tokens: int, after: int) -> list[dict[str, torch.Tensor]]:
        """Training rows that together hold at least so many tokens, behind those that hold the `after` first ones.

        One row per batch: a search runs the same few rows hundreds of times, and would compute their padding as often.
        """
        skipped = self.config.calibration.skip_samples
        first = skipped + self._rows_of(after, skipped)
        return self.data.train_batches(self._rows_of(tokens, first), 1, first=first)

    def _rows_of(self, tokens: int, first: int) -> int:
        """How many training rows from `first` on it takes to hold so many tokens."""
        held, row = 0, first
        while held < tokens and row < self.data.num_train_rows:
            held += self.data.train_length(row)
            row += 1
        return row - first

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.cluster.device

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.trainer.default_root_dir)

    @property
    def precision(self) -> str:
        """Of the Trainer; the model's own dtype is the true precision.

        Lightning's bf16-true would also round the rotary frequencies; loading in bfloat16 does not.
        """
        precision = self.config.training.precision
        return precision if precision.endswith("-mixed") else "32-true"

    def commit(self, results: Mapping[str, Any], *, step_offset: int | None = None) -> None:
        """Finish the current phase on every rank; rank 0 writes the manifest once all of them are through."""
        self.cluster.barrier()
        self.manifest.advance(results, step_offset=step_offset)
        if self.cluster.is_main:
            self.manifest.write(self.folder)
        self.cluster.barrier()

    def rewind(self, phase: str) -> None:
        """Go back to a phase on every rank, because what it wrote was lost."""
        self.manifest.rewind(phase)
        if self.cluster.is_main:
            self.manifest.write(self.folder)
        self.cluster.barrier()

    def trainer(self, **options: Any) -> pl.Trainer:
        """A Lightning Trainer on the cluster's devices."""
        where = self.config.trainer
        return pl.Trainer(
            accelerator=where.accelerator,
            devices=self.cluster.devices,
            num_nodes=self.cluster.num_nodes,
            strategy=build_strategy(self.strategy, self.config, self.cluster.world_size),
            deterministic=where.deterministic,
            log_every_n_steps=where.log_every_n_steps,
            default_root_dir=where.default_root_dir,
            precision=self.precision,  # type: ignore[arg-type]
            max_epochs=-1,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )

    def load(self, source: str | Path) -> PreTrainedModel:
        """Load the original (its name) or a phase's folder, in the dtype this fit trains in."""
        model = self.config.model
        options = self._origin if source == model.source else {}
        name = str(self.dtype).removeprefix("torch.")
        place = None if self.residency is not None else self.device
        loaded = load_model(
            str(source), dtype=name, attn_implementation=model.attn_implementation, device=place, **options
        )
        return self.prepared(loaded if self.residency is None else self.residency.adopt(loaded))

    @cached_property
    def original(self) -> PreTrainedModel:
        """The unmodified model, kept until `forget_original`."""
        return self.load(self.config.model.source)

    def forget_original(self) -> None:
        """Give back the original's memory once calibration is over."""
        self.__dict__.pop("original", None)

    def _too_large(self) -> bool:
        """Whether a whole model leaves no room on the device; its layers then visit it from main memory."""
        if self.device.type != "cuda":
            return False
        weights = costs.parameters(LayerPlan.unmodified(self.shape.num_layers), self.shape) * self.dtype.itemsize
        return weights > MODEL_SHARE * torch.cuda.get_device_properties(self.device).total_memory

    def converted(self) -> PreTrainedModel:
        """A fresh converted model on the original's weights, W_c zero."""
        return self.prepared(converted_copy(self.original, self.plan))

    def skeleton(self, source: Path) -> PreTrainedModel:
        """A phase's folder without weights, for a strategy that shards."""
        kernel = self.config.model.attn_implementation
        return self.prepared(skeleton(source, dtype=self.dtype, attn_implementation=kernel))

    def prepared(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` as this experiment has its reuse layers get their maps."""
        if hasattr(model.config, "reuse_mode"):
            model.config.reuse_mode = self.config.model.reuse
            model.config.map_memory_mib = self.config.model.map_memory_mib
        return model

    @cached_property
    def validation(self) -> list[dict[str, torch.Tensor]]:
        """The held-out batches every milestone is measured on: the share of this rank; as many on each."""
        options, cluster = self.config.evaluation, self.cluster
        return self.data.validation_batches(
            options.num_samples, options.batch_size, rank=cluster.rank, world_size=cluster.world_size
        )

    def score(self, model: nn.Module) -> HeldOut:
        """Held-out quality of a model, measured by all ranks together."""
        return held_out_metrics(model, self.validation, device=self.device, sums=self.cluster.sums)

    def milestone(self, name: str, model: nn.Module, *, step: int | None = None) -> dict[str, Any]:
        """Measure the model on held-out rows, log and print it; returns {name: metrics} for the manifest.

        Args:
            name: of the milestone, a key of `results.LABELS`.
            model: measured as it is.
            step: optimizer steps of the fit so far, for the points of the fit's own `val/` curve.
        """
        metrics = self.score(model)
        if self.run is not None:
            self.run.log_metrics(metrics.named(f"{name}/"), step or 0)
            if step is not None:
                self.run.log_metrics(metrics.named("val/"), step)
        accuracy = "" if metrics.answer_accuracy is None else f", answer accuracy {metrics.answer_accuracy:.1%}"
        self.console.print(f"{name}: held-out response loss {metrics.response_loss:.4f}{accuracy}", highlight=False)
        return {name: metrics.to_dict()}


def _accumulated(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro batches per optimizer step and rank. Raises UserError when they do not divide the batch."""
    together = micro_batch_size * world_size
    if batch_size % together:
        raise UserError(
            f"training.batch_size={batch_size} is not a multiple of training.micro_batch_size={micro_batch_size} "
            f"x {world_size} device(s) = {together}; nearest: {max(together, round(batch_size / together) * together)}."
        )
    return batch_size // together
