"""All that a fit opens, opened before it starts, without weights and with few rows through the tokenizer.

Every problem is collected, so that one dry run tells all of them; where it finds none, the fit starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import lightning.pytorch as pl

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.config.sections.dpo_section import DPO
from uniattn_pl.data.chat_template import ChatTemplate, template_contents
from uniattn_pl.data.data_report import DataReport, report_of
from uniattn_pl.data.encoded_split import encode_split, no_usable_row
from uniattn_pl.data.encoding import encode_rows
from uniattn_pl.data.open_rows import open_rows
from uniattn_pl.data.preference_data import rejected_split
from uniattn_pl.data.refused_rows import check_chats
from uniattn_pl.data.row_layout import check_packing
from uniattn_pl.data.self_text import NotSampledError, Original
from uniattn_pl.data.split_rows import Split
from uniattn_pl.data.streaming.stream_split import StreamSplit
from uniattn_pl.display.quiet_libraries import quiet_libraries
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import MODELS, named_folder
from uniattn_pl.kernels.kernel_presence import check_kernel
from uniattn_pl.kernels.triton_maps.availability import check_reuse_mode
from uniattn_pl.modeling.loading.hub_connection import UnopenedModelError
from uniattn_pl.modeling.loading.model_contents import model_identity
from uniattn_pl.modeling.loading.pretrained import check_weights, empty_model, load_tokenizer
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.resilience.cluster import Cluster
from uniattn_pl.resilience.devices import LIGHTNING_RAISES
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Contents, changes
from uniattn_pl.resilience.manifest import Manifest, check_free
from uniattn_pl.run_folder import check_run_folder
from uniattn_pl.tracking.store_check import check_beside, check_store
from uniattn_pl.training.encoder_checks import check_encoder
from uniattn_pl.training.experiment import accumulated, check_updates, model_origin, skips_all, trainer_precision
from uniattn_pl.training.optimizer_checks import check_optimizer
from uniattn_pl.training.planning import check_positions, checked_shape, compile_plan
from uniattn_pl.training.strategies import build_strategy, resolve_strategy
from uniattn_pl.training.teacher_checks import check_source_maps, check_teacher, teacher_contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from uniattn_pl.data.rows import Row

SAMPLE = 64  # rows that go through the tokenizer together, until enough of them can be used
T = TypeVar("T")


@dataclass
class Preflight:
    """What a fit would open.

    Attributes:
        shape: of the model.
        plan: None where it is chosen by measurement.
        rows: the rows; None where they were not asked for.
        unsampled: why rows were not read that are text of the model; None: they were.
        tokens: what the rows come to as tokens; None where they were not asked for, or are streamed.
        cluster: the devices.
        unopened: why the model itself was not looked at, though nothing is known to be wrong with it; None: it was.
    """

    shape: ModelShape
    plan: LayerPlan | None
    rows: Split | StreamSplit | None
    unopened: str | None
    unsampled: str | None
    tokens: DataReport | None = None
    cluster: Cluster | None = None


@dataclass
class _Findings:
    """Runs checks, and keeps the problems of those that fail."""

    problems: list[str] = field(default_factory=list)
    unopened: str | None = None
    unsampled: str | None = None

    def of(self, check: Callable[..., T], *words: Any, **options: Any) -> T | None:
        """What a check returns; None where it has found problems."""
        try:
            return check(*words, **options)
        except UnopenedModelError as error:
            self.unopened = str(error)
        except NotSampledError as error:
            self.unsampled = str(error)
        except UserError as error:
            self.problems += error.problems
        return None


def check_fit(
    loaded: LoadedConfig,
    *,
    resumes: bool = True,
    rows: bool = True,
    tokens: bool = False,
    allow_changes: bool = False,
) -> Preflight:
    """Open everything that a fit of an experiment opens.

    Args:
        resumes: look at what its run folder holds, too; the points of a sweep are other experiments once they change.
        rows: read them.
        tokens: tokenise them all, and keep the tokens for the fit; else only as many as show that some can be used.
        allow_changes: a begun run may go on with others.

    Raises:
        UserError: with all that would keep the fit from starting.
    """
    quiet_libraries()
    config, found = loaded.config, _Findings()
    folder = Path(config.trainer.default_root_dir)
    cluster = found.of(Cluster, config)
    if cluster is not None:
        found.of(check_kernel, config.model.attn_implementation, device=cluster.device)
        found.of(check_reuse_mode, config.model.reuse, cluster.device)
    found.of(check_run_folder, folder)
    found.of(check_store, config.tracking)
    found.of(check_beside, config.tracking)
    planned = found.of(_planned, loaded)
    if planned is not None:
        found.of(check_positions, loaded, planned[1])
    if planned is None and found.unopened:
        found.problems.append(found.unopened)  # not even its shape is known
    tokenizer = found.of(_check_model, loaded, *planned) if planned is not None else None
    if tokenizer is None and found.unopened is None:  # the model has problems of its own, which the rows do not share
        tokenizer = _Findings().of(load_tokenizer, config.model.source, **model_origin(loaded))
    if cluster is not None and planned is not None:
        found.of(_check_trainer, loaded, cluster, planned[1])
        strategy = found.of(resolve_strategy, config, cluster, planned[1])
        if strategy is not None:
            found.of(check_optimizer, loaded, planned[0], strategy, cluster.device)
    opened = found.of(open_rows, config.data, Original(config.model)) if rows else None
    report: DataReport | None = None
    usable = opened is not None and tokenizer is not None and found.of(_check_rows, loaded, opened, tokenizer)
    if tokens and usable and isinstance(opened, Split):
        report = found.of(_tokenised, loaded, opened, tokenizer)
    if report is not None and planned is not None:
        found.of(check_positions, loaded, planned[1], report.longest)
    if resumes and not found.problems:
        found.of(_check_resumption, loaded, folder, opened, tokenizer, allow_changes=allow_changes)
    if found.problems or planned is None:
        raise UserError(*dict.fromkeys(found.problems))
    return Preflight(planned[1], planned[0], opened, found.unopened, found.unsampled, report, cluster)


def _planned(loaded: LoadedConfig) -> tuple[LayerPlan | None, ModelShape]:
    return (None, checked_shape(loaded)) if loaded.architecture.measured else compile_plan(loaded)


def _check_model(loaded: LoadedConfig, plan: LayerPlan | None, shape: ModelShape) -> PreTrainedTokenizerBase:
    """The tokenizer; the files of weights, the kernel and the modules of low-rank updates are looked at.

    Raises:
        UserError: with the problems of all of them.
        UnopenedModelError: the model is not here yet.
    """
    model, origin = loaded.config.model, model_origin(loaded)
    entry = MODELS.get(model.source)
    if entry is not None and entry.source is not None and not named_folder(model.source).exists():
        entry.source()
        raise UnopenedModelError(f"model '{model.source}' is converted from its package when the fit starts.")
    found = _Findings()
    found.of(check_weights, model.source, revision=model.revision)
    tokenizer = found.of(load_tokenizer, model.source, **origin)
    found.of(empty_model, model.source, attn_implementation=model.attn_implementation, **origin)
    if not found.problems and found.unopened is None:
        found.of(check_updates, loaded)
        found.of(check_teacher, loaded, shape)
        found.of(check_source_maps, loaded, plan)
        found.of(check_encoder, loaded, shape, plan)
    if found.problems:
        raise UserError(*dict.fromkeys(found.problems))
    if tokenizer is None:
        raise UnopenedModelError(str(found.unopened))
    return tokenizer


def _check_trainer(loaded: LoadedConfig, cluster: Cluster, shape: ModelShape) -> None:
    """Build the Trainer of a stage, which starts nothing."""
    config = loaded.config
    training, where = config.training, config.trainer
    accumulate = accumulated(training.batch_size, training.micro_batch_size, cluster.world_size)
    try:
        pl.Trainer(
            accelerator=where.accelerator,
            devices=cluster.devices,
            num_nodes=cluster.num_nodes,
            strategy=build_strategy(resolve_strategy(config, cluster, shape), config, cluster.world_size),
            precision=trainer_precision(config),  # type: ignore[arg-type]
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except LIGHTNING_RAISES as error:
        raise UserError(f"Lightning cannot train so: {' '.join(str(error).split())}") from error


def _check_rows(loaded: LoadedConfig, split: Split | StreamSplit, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Check that there are rows to train on (of each source of a mixture), to calibrate on and to validate, and that
    the chat template takes them; True where nothing is wrong."""
    config = loaded.config
    check_packing(config.data.packing, tokenizer)
    template = ChatTemplate.of(config.data, tokenizer)
    if isinstance(split, Split):  # of a stream a fit says so when it comes to the row
        for part in (split, rejected_split(split)) if config.training.objective == DPO else (split,):
            if template is not None:
                check_chats(part, template, config.data)
    skipped, longest, name = config.calibration.skip_samples, config.data.max_length, config.data.name
    for source, rows in split.by_source():
        if not _usable(rows, tokenizer, longest, template, wanted=1):
            raise no_usable_row("training", source, longest)
    usable = _usable(split.first_rows(), tokenizer, longest, template, wanted=skipped + 1)
    if not usable:
        raise no_usable_row("training", name, longest)
    if not _usable(split.validation, tokenizer, longest, template, wanted=1):
        raise no_usable_row("validation", name, longest)
    if usable <= skipped:
        raise skips_all(skipped)
    return True


def _tokenised(loaded: LoadedConfig, split: Split, tokenizer: PreTrainedTokenizerBase) -> DataReport:
    """All rows as tokens, kept where the fit looks for them. Raises as `encode_split`."""
    config = loaded.config
    template = ChatTemplate.of(config.data, tokenizer)
    return report_of(config.data, split, encode_split(config.data, split, tokenizer, config.seed, template))


def _usable(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    template: ChatTemplate | None,
    *,
    wanted: int,
) -> int:
    """How many rows can be used; counting ends when there are enough."""
    found, left = 0, iter(rows)
    while found < wanted and (sample := list(islice(left, SAMPLE))):
        found += len(encode_rows(sample, tokenizer, max_length, template=template, skip_refused=True))
    return found


def _check_resumption(
    loaded: LoadedConfig,
    folder: Path,
    rows: Split | StreamSplit | None,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    allow_changes: bool,
) -> None:
    """Check that a folder that a fit has begun is free, and is this experiment's by config and by content."""
    check_free(folder)
    manifest = Manifest.read(folder)
    if manifest is None or allow_changes or not manifest.has_begun(folder):
        return
    manifest.check_same_config(plain_config(loaded), folder)
    model = loaded.config.model
    identity: dict[str, Contents] = teacher_contents(loaded)
    if rows is not None:
        identity |= {TRAINING_ROWS: rows.train_contents(), HELD_OUT_ROWS: rows.validation_contents()}
    if tokenizer is not None:
        identity |= model_identity(tokenizer, model.source, model.revision)
        identity |= template_contents(ChatTemplate.of(loaded.config.data, tokenizer))
    changed = changes(identity, manifest.identity, folder)
    if changed:
        raise UserError(*changed.values(), f"put back what {folder} was started with, or see --allow-changes.")
