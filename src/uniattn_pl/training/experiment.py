"""An experiment opened for training: the model's shape and tokenizer, its rows, and how it is trained; no weights."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.data.chat_template import use_template
from uniattn_pl.data.open_rows import data_module
from uniattn_pl.data.self_text import Original
from uniattn_pl.errors import UserError
from uniattn_pl.families.feed_forward import output_of_feed_forward
from uniattn_pl.families.inspection import attentions_of, decoder_layers
from uniattn_pl.families.packed_rows import check_rows_stay_apart
from uniattn_pl.losses.router_loss import adds_router_loss
from uniattn_pl.modeling.loading.frozen_4bit import check_matrices
from uniattn_pl.modeling.loading.model_contents import model_identity
from uniattn_pl.modeling.loading.pretrained import check_weights, empty_model, load_shape, load_tokenizer
from uniattn_pl.modeling.lora import check_target_modules
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.identity import Contents
from uniattn_pl.training.encoder_checks import check_encoder
from uniattn_pl.training.optimizer_checks import check_optimizer
from uniattn_pl.training.planning import check_positions, compiled_plan
from uniattn_pl.training.strategies import resolve_strategy
from uniattn_pl.training.teacher_checks import (
    check_separate_projections,
    check_source_maps,
    check_teacher,
    map_stages,
    teacher_contents,
)


class Experiment:
    """What is trained on what, as the config says.

    Attributes:
        loaded, config: the checked config, with and without where its values came from.
        shape: of the model.
        compiled_plan: of an architecture that needs no measurement, else None.
        tokenizer, data: its tokenizer, and the rows as tokens, the part of this rank.
        strategy: single, ddp or fsdp.
        accumulate: micro batches per optimizer step and rank.

    Raises:
        UserError: the plan does not fit the model, its positions do not reach, the data cannot be read, or batch sizes
            do not divide.
    """

    def __init__(self, loaded: LoadedConfig, cluster: Cluster) -> None:
        self.loaded, self.config = loaded, loaded.config
        training, origin = self.config.training, model_origin(loaded)
        source = self.config.model.source
        self.shape = load_shape(source, **origin)
        self.compiled_plan = compiled_plan(loaded, self.shape)
        check_positions(loaded, self.shape)
        check_updates(loaded)
        check_teacher(loaded, self.shape)
        check_source_maps(loaded, self.compiled_plan)
        check_encoder(loaded, self.shape, self.compiled_plan)
        check_weights(source, revision=self.config.model.revision)
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(source, **origin)
        use_template(self.config.data, self.tokenizer)  # model folders are saved with it
        self.accumulate = accumulated(training.batch_size, training.micro_batch_size, cluster.world_size)
        self.strategy = resolve_strategy(self.config, cluster, self.shape)
        check_optimizer(loaded, self.compiled_plan, self.strategy, cluster.device)
        self.data: InstructionDataModule = data_module(
            self.config.data,
            self.tokenizer,
            training.objective,
            batch_size=training.batch_size,
            micro_batch_size=training.micro_batch_size,
            eval_batch_size=self.config.evaluation.batch_size,
            seed=self.config.seed,
            rank=cluster.rank,
            world_size=cluster.world_size,
            original=Original(self.config.model, cluster.device),
        )
        self.data.setup()
        check_positions(loaded, self.shape, self.data.report.longest)
        skipped = self.config.calibration.skip_samples
        if not self.data.has_train_row(skipped):
            raise skips_all(skipped)

    @cached_property
    def identity(self) -> dict[str, Contents]:
        """What its results rest on, by content; weights are read for it, once, so rank 0 alone asks."""
        model = self.config.model
        of_model = model_identity(self.tokenizer, model.source, model.revision)
        return {**of_model, **teacher_contents(self.loaded), **self.data.contents}

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.trainer.default_root_dir)

    @property
    def precision(self) -> str:
        """Of the Trainer; the model's own dtype is the true precision.

        Lightning's bf16-true would also round the rotary frequencies; loading in bfloat16 does not.
        """
        return trainer_precision(self.config)

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
        while held < tokens and self.data.has_train_row(row):
            held += self.data.train_length(row)
            row += 1
        return row - first


def check_updates(loaded: LoadedConfig) -> None:
    """Check, without weights, that the model has what is to be refined or to train, the loss of routers, rows apart.

    Raises:
        UserError: as `output_of_feed_forward`, `check_target_modules`, `check_matrices`, `adds_router_loss` and
            `check_rows_stay_apart`; queries and keys that cannot train by themselves.
    """
    training, feed_forward = loaded.config.training, loaded.config.calibration.refine.feed_forward
    packing = loaded.config.data.packing
    trains_maps = "stage1" in map_stages(loaded)
    if not (training.lora.enabled or training.router_loss or trains_maps or feed_forward or packing):
        return
    model = empty_model(loaded.config.model.source, **model_origin(loaded))
    if training.lora.enabled:
        check_target_modules(model, training.lora.target_modules)
    if training.lora.quantization is not None:
        check_matrices(model)
    if trains_maps:
        check_separate_projections(model)
    adds_router_loss(model, training.router_loss)
    if packing:
        check_rows_stay_apart(model)
    for index in attentions_of(model) if feed_forward else ():
        output_of_feed_forward(decoder_layers(model)[index])


def model_origin(loaded: LoadedConfig) -> dict[str, Any]:
    """How the model's source is to be read: its revision, and whether its own code may run."""
    model = loaded.config.model
    return {"revision": model.revision, "trust_remote_code": model.trust_remote_code}


def trainer_precision(config: ExperimentConfig) -> str:
    """See `Experiment.precision`."""
    precision = config.training.precision
    return precision if precision.endswith("-mixed") else "32-true"


def skips_all(skipped: int) -> UserError:
    """What to tell where calibration passes over every training row."""
    return UserError(
        f"calibration.skip_samples={skipped} leaves no row to calibrate on: there are no more training rows than that."
    )


def accumulated(batch_size: int, micro_batch_size: int, world_size: int) -> int:
    """Micro batches per optimizer step and rank. Raises UserError when they do not divide the batch."""
    together = micro_batch_size * world_size
    if batch_size % together:
        raise UserError(
            f"training.batch_size={batch_size} is not a multiple of training.micro_batch_size={micro_batch_size} "
            f"x {world_size} device(s) = {together}; nearest: {max(together, round(batch_size / together) * together)}."
        )
    return batch_size // together
