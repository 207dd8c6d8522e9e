"""What the phases of one fit share: config, plan, data, folders, the manifest and the MLflow run."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.calibration.solvers import DEFAULT_RIDGE
from uniattn_pl.config import LoadedConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.held_out import HeldOut, held_out_metrics
from uniattn_pl.modeling import converted_copy
from uniattn_pl.modeling.loading import load_model, load_shape, load_tokenizer
from uniattn_pl.plan import LayerPlan
from uniattn_pl.search.measurements import ModelMeasurements
from uniattn_pl.tracking.mlflow_run import MLflowRun
from uniattn_pl.tracking.redaction import redact
from uniattn_pl.training.manifest import Manifest
from uniattn_pl.training.progress import ProgressReporter

# What the weights are kept in; "auto" keeps the model's own dtype. Mixed precision needs float32 master weights.
WEIGHT_DTYPES = {"32-true": "float32", "bf16-true": "bfloat16", "bf16-mixed": "float32", "16-mixed": "float32"}
MEASURED_TOKENS = 2000
SEARCH_FOLDER = "search"


class FitSession:
    """Everything of a fit that is not a decision: opened by the runner, read by the phases.

    Args:
        loaded: the checked experiment.
        manifest: how far the fit has come.
        console: where people read.

    Raises:
        UserError: the plan does not fit the model, the data cannot be read, or batch sizes do not divide.
    """

    def __init__(self, loaded: LoadedConfig, manifest: Manifest, console: Console) -> None:
        self.loaded, self.config, self.manifest, self.console = loaded, loaded.config, manifest, console
        self.run: MLflowRun | None = None
        model = self.config.model
        origin: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
        self._origin = origin
        self.shape = load_shape(model.source, **origin)
        loaded.architecture.check(self.shape)
        if not loaded.architecture.measured:
            self.plan.check(self.shape)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(model.source, **origin)
        probe = self.trainer(logger=False, max_steps=0)
        self.device: torch.device = probe.strategy.root_device
        self.rank, self.world_size = probe.global_rank, probe.world_size
        self.accumulate = _accumulated(
            self.config.training.batch_size, self.config.training.micro_batch_size, self.world_size
        )
        self.data = InstructionDataModule(
            self.config.data,
            self.tokenizer,
            batch_size=self.config.training.batch_size,
            micro_batch_size=self.config.training.micro_batch_size,
            eval_batch_size=self.config.evaluation.batch_size,
            seed=self.config.seed,
            rank=self.rank,
            world_size=self.world_size,
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
        with ProgressReporter(f"choosing layers ({architecture.name})", self.console) as progress:
            plan = architecture.choose(self.shape, self.measurements(progress))
        plan = plan.limit_rank(self.config.calibration.rank)
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
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.trainer.default_root_dir)

    def checkpoint(self, stage: int) -> Path:
        """Where the resumable Lightning checkpoint of a stage is."""
        return self.folder / "checkpoints" / f"stage{stage}.ckpt"

    def trainer(self, **options: Any) -> pl.Trainer:
        """A Lightning Trainer on the configured devices; the model's own dtype is the true precision.

        Lightning's bf16-true would also round the rotary frequencies; loading in bfloat16 does not.
        """
        where, precision = self.config.trainer, self.config.training.precision
        return pl.Trainer(
            accelerator=where.accelerator,
            devices=where.devices,
            num_nodes=where.num_nodes,
            deterministic=where.deterministic,
            log_every_n_steps=where.log_every_n_steps,
            default_root_dir=where.default_root_dir,
            precision=precision if precision.endswith("-mixed") else "32-true",  # type: ignore[arg-type]
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
        dtype = WEIGHT_DTYPES.get(self.config.training.precision, model.dtype)
        options = self._origin if source == model.source else {}
        loaded = load_model(str(source), dtype=dtype, attn_implementation=model.attn_implementation, **options)
        return self._prepared(loaded)

    @cached_property
    def original(self) -> PreTrainedModel:
        """The unmodified model, kept until `forget_original`."""
        return self.load(self.config.model.source)

    def forget_original(self) -> None:
        """Give back the original's memory once calibration is over."""
        self.__dict__.pop("original", None)

    def converted(self) -> PreTrainedModel:
        """A fresh converted model on the original's weights, W_c zero."""
        return self._prepared(converted_copy(self.original, self.plan))

    def _prepared(self, model: PreTrainedModel) -> PreTrainedModel:
        model.to(self.device)  # type: ignore[arg-type]
        if hasattr(model.config, "reuse_mode"):
            model.config.reuse_mode = self.config.model.reuse
            model.config.map_memory_mib = self.config.model.map_memory_mib
        return model

    @cached_property
    def validation(self) -> list[dict[str, torch.Tensor]]:
        """The held-out batches every milestone is measured on."""
        return self.data.validation_batches(self.config.evaluation.num_samples, self.config.evaluation.batch_size)

    def milestone(self, name: str, model: PreTrainedModel, *, step: int | None = None) -> dict[str, Any]:
        """Measure the model on held-out rows, log and print it; returns {name: metrics} for the manifest.

        Args:
            name: of the milestone, a key of `results.LABELS`.
            model: measured as it is.
            step: optimizer steps of the fit so far, for the points of the fit's own `val/` curve.
        """
        metrics: HeldOut = held_out_metrics(model, self.validation)
        if self.run is not None:
            self.run.log_metrics(metrics.named(f"{name}/"), step or 0)
            if step is not None:
                self.run.log_metrics(metrics.named("val/"), step)
        accuracy = "" if metrics.answer_accuracy is None else f", answer accuracy {metrics.answer_accuracy:.1%}"
        self.console.print(f"{name}: held-out response loss {metrics.response_loss:.4f}{accuracy}", highlight=False)
        return {name: metrics.to_dict()}


def plain_config(loaded: LoadedConfig) -> dict[str, Any]:
    """The experiment as plain data without credentials, as the manifest keeps it."""
    plain: dict[str, Any] = redact(dataclasses.asdict(loaded.config))
    return plain


def _accumulated(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro batches per optimizer step and rank. Raises UserError when they do not divide the batch."""
    together = micro_batch_size * world_size
    if batch_size % together:
        raise UserError(
            f"training.batch_size={batch_size} is not a multiple of training.micro_batch_size={micro_batch_size} "
            f"x {world_size} device(s) = {together}; nearest: {max(together, round(batch_size / together) * together)}."
        )
    return batch_size // together
