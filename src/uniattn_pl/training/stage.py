"""One training stage: one Lightning Trainer, from a model folder to a model folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.data.loader import ResumableLoader
from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.checkpoints import SHARDS, CheckpointStore, step_of
from uniattn_pl.resilience.model_folders import copy_model, damaged_files, file_sums
from uniattn_pl.tracking.fit_result import INITIAL, STAGE1, StageSummary
from uniattn_pl.tracking.stage_logger import StageLogger
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.frozen_weights import restore_frozen
from uniattn_pl.training.held_out_texts import HeldOutTexts
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.milestones import Milestones
from uniattn_pl.training.objectives.stage_objective import stage_objective
from uniattn_pl.training.saved_model import InMemory, reread
from uniattn_pl.training.stage_callbacks import StageCallbacks, stage_callbacks
from uniattn_pl.training.stage_model import build_model, fill_shards, fills_shards, save_result
from uniattn_pl.training.stage_preferences import StagePreferences, stage_preferences
from uniattn_pl.training.strategies import build_strategy

MIXED = "bf16-mixed"
FINAL = "final"


@dataclass(frozen=True)
class Stage:
    """One of the two stages of an experiment.

    Attributes:
        number: 1 trains W_c (and, for their readers, sources' queries and keys), 2 everything (or low-rank updates).
        options: None where the stage does not run: disabled, or stage 1 with nothing to compensate.
        source: the model folder it starts from, which is named like the milestone that was measured of it.
        target: the model folder it leaves.
    """

    number: int
    options: StageConfig | None
    source: Path
    target: Path

    @classmethod
    def of(cls, number: int, experiment: Experiment, plan: LayerPlan) -> Stage:
        """Stage 1 goes from `initial/` to `stage1/`, stage 2 from there, or from `initial/`, to `final/`."""
        training, root = experiment.config.training, experiment.folder
        first = training.stage1 if training.stage1.enabled and plan.compensated else None
        if number == 1:
            return cls(1, first, root / INITIAL, root / STAGE1)
        second = training.stage2 if training.stage2.enabled else None
        # a leftover stage1 folder of a fit that does not run stage 1 is not ours
        return cls(2, second, root / (INITIAL if first is None else STAGE1), root / FINAL)

    @property
    def name(self) -> str:
        return f"stage{self.number}"

    @property
    def source_phase(self) -> str:
        """The phase that wrote the folder it starts from."""
        return "initialise" if self.source.name == INITIAL else self.source.name


def run_stage(
    stage: Stage,
    experiment: Experiment,
    plan: LayerPlan,
    models: FitModels,
    milestones: Milestones,
    context: FitContext,
) -> tuple[dict[str, Any], int | None]:
    """Train a stage from the folder of the one before (or its checkpoint), save and measure it.

    A stage always starts from files, also in a process that has the model in memory: a resumed fit
    then takes exactly the same path.

    Returns:
        Its results for the record, and the optimizer steps of the fit behind it (None: the stage does not run).

    Raises:
        TrainingDivergedError: the loss or a gradient is not finite.
        CheckpointError: a checkpoint cannot be written.
        Preempted: a signal asked to end.
        RunFailure: what was saved is not what was trained.
    """
    if stage.options is None:
        return _copied(stage, context) if stage.target.name == FINAL else {}, None
    preferences: StagePreferences | None = None
    if stage.number == 2:
        preferences = stage_preferences(stage.source, stage.source_phase, experiment, plan, models, context)
    milestones.judge = None if preferences is None else preferences.score
    module, summary = _train(stage, stage.options, experiment, plan, models, milestones, context, preferences)
    offset = context.record.manifest.step_offset + summary.steps
    restore_frozen(module.hosted)
    if not _shards(experiment):
        models.place(module.hosted)
    in_memory = InMemory.of(module.hosted, experiment, milestones, context)
    save_result(experiment, models, module.hosted, stage.source, stage.target, is_main=context.cluster.is_main)
    del module  # makes room for the one that is measured
    saved = reread(stage.target, in_memory, models, milestones, context)
    results: dict[str, Any] = {"stage": asdict(summary)}
    results["milestones"] = milestones.measure(stage.name, saved, step=offset)
    if stage.number == 2 or not experiment.config.training.stage2.enabled:
        results |= HeldOutTexts(experiment, models, context).said(stage.name, saved)
    if context.cluster.is_main:
        results["files"] = file_sums(stage.target)
    context.tracking.flush()
    return results, offset


def _copied(stage: Stage, context: FitContext) -> dict[str, Any]:
    """Let the folder that a stage would have started from be its result."""
    if not context.cluster.is_main:
        return {}
    copy_model(stage.source, stage.target)
    recorded = context.record.result(stage.source_phase).get("files", {})
    names = damaged_files(stage.target, recorded)
    if names:
        raise RunFailure(f"{stage.target} is no true copy of {stage.source} ({', '.join(names)} differ).")
    return {"files": recorded}


def clear_checkpoints(stage: Stage, context: FitContext) -> None:
    """Remove the checkpoints of a stage whose results are recorded: its model folder takes their place."""
    if context.cluster.is_main:
        _store(stage, context).clear()


def _store(stage: Stage, context: FitContext) -> CheckpointStore:
    return CheckpointStore(context.record.folder / "checkpoints" / stage.name, context.console)


def is_damaged(folder: Path, phase: str, context: FitContext) -> bool:
    """Whether a model folder differs from what a phase has written; rank 0 looks, and tells."""
    names: list[str] = []
    if context.cluster.is_main:
        names = damaged_files(folder, context.record.result(phase).get("files", {}))
        if names:
            context.console.print(f"{folder} is damaged ({', '.join(names)}); writing it again.")
    return bool(context.cluster.broadcast(names))


def _train(
    stage: Stage,
    options: StageConfig,
    experiment: Experiment,
    plan: LayerPlan,
    models: FitModels,
    milestones: Milestones,
    context: FitContext,
    preferences: StagePreferences | None,
) -> tuple[PostTrainingModule, StageSummary]:
    """One Trainer's fit of a stage, resuming from its newest good checkpoint if there is one."""
    training, store = experiment.config.training, _store(stage, context)
    pl.seed_everything(experiment.config.seed + stage.number, verbose=False)
    steps = options.max_steps
    loader = experiment.data.train_dataloader(steps) if preferences is None else preferences.loader
    loader.takes_other_items = bool(context.record.manifest.accepted)
    halves = experiment.precision == MIXED and not _shards(experiment)  # a unit of shards holds one dtype
    objective = preferences and preferences.objective
    module = PostTrainingModule(
        lambda: build_model(stage.number, experiment, plan, models, stage.source),
        stage=stage.number,
        options=options,
        optimizer=training.optimizer,
        max_grad_norm=training.max_grad_norm,
        objective=objective or stage_objective(stage.number, experiment, models, halves=halves),
        router_loss=training.router_loss,
        halves_frozen=halves,
        fill=partial(fill_shards, experiment, models, source=stage.source)
        if fills_shards(stage.number, experiment)
        else None,
    )
    callbacks = stage_callbacks(stage.number, experiment, milestones, context, store=store, loader=loader)
    steps = _total_steps(experiment, options, len(loader))
    trainer = _trainer(experiment, context, callbacks=callbacks.all, plugins=[store.io], max_steps=steps)
    checkpoint = store.newest_good()
    if checkpoint is not None and checkpoint.name == SHARDS and not _shards(experiment):
        raise UserError(
            f"the checkpoint {checkpoint} was written in shards, which training.strategy=fsdp reads, also on one "
            "device."
        )
    if checkpoint is not None:
        context.console.print(f"{stage.name} goes on from its step {step_of(checkpoint)} of {steps}.", highlight=False)
    with _without_lightning_advice(trainer), context.preemption.deferred():
        trainer.fit(module, loader, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True)
    context.preemption.check()  # a signal behind the last step
    _tell_sources(stage, loader, trainer.global_step, context)
    summary = _summary(stage, trainer, callbacks)
    if callbacks.best is not None:
        callbacks.best.restore(trainer, module)
        context.console.print(f"stage {stage.number} {summary.kept_words}.", highlight=False, soft_wrap=True)
    return module, summary


def _tell_sources(stage: Stage, loader: ResumableLoader, steps: int, context: FitContext) -> None:
    """Log what a stage has taken of each source of a mixture or a stream, and tell what was read of a stream."""
    counts = {f"{stage.name}/{name}": count for name, count in loader.source_counts().items()}
    context.tracking.log_metrics(counts, context.record.manifest.step_offset + steps)
    for line in loader.source_lines():
        context.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _summary(stage: Stage, trainer: pl.Trainer, callbacks: StageCallbacks) -> StageSummary:
    stopped = callbacks.early_stop is not None and callbacks.early_stop.stopped_at is not None
    speed = (callbacks.throughput.tokens_per_second, callbacks.throughput.step_seconds)
    best = callbacks.best
    kept = (None, None) if best is None or best.step is None else (best.step, best.loss)
    return StageSummary(stage.name, trainer.global_step, stopped, *speed, *kept)


def _shards(experiment: Experiment) -> bool:
    return experiment.strategy == "fsdp"


def _trainer(experiment: Experiment, context: FitContext, **options: Any) -> pl.Trainer:
    """A Lightning Trainer on the cluster's devices, whose own output and validation are off."""
    where, mlflow_run = experiment.config.trainer, context.tracking.mlflow_run
    trainer = pl.Trainer(
        accelerator=where.accelerator,
        devices=context.cluster.devices,
        num_nodes=context.cluster.num_nodes,
        strategy=build_strategy(experiment.strategy, experiment.config, context.cluster.world_size),
        deterministic=where.deterministic,
        log_every_n_steps=where.log_every_n_steps,
        default_root_dir=where.default_root_dir,
        precision=experiment.precision,  # type: ignore[arg-type]
        accumulate_grad_batches=experiment.accumulate,
        logger=False if mlflow_run is None else StageLogger(mlflow_run, context.record.manifest.step_offset),
        max_epochs=-1,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        use_distributed_sampler=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    # which broadcasts wherever the signal comes, and ranks that are in another collective lock up
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: None  # type: ignore[method-assign]
    return trainer


@contextmanager
def _without_lightning_advice(trainer: pl.Trainer) -> Iterator[None]:
    """Silence advice that does not apply, and raise KeyboardInterrupt where Lightning turns Ctrl-C into exit(1)."""
    with warnings.catch_warnings():
        # Lightning would have workers for a loader that is tokenised in memory, a validation loop where the
        # milestones are measured instead, and calls what PyTorch has deprecated
        warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            yield
        except SystemExit:
            if trainer.interrupted:
                raise KeyboardInterrupt from None
            raise


def _total_steps(experiment: Experiment, options: StageConfig, micro_batches: int) -> int:
    """Optimizer steps of a stage; the last, smaller batch of an epoch is a step too."""
    steps = options.max_epochs * math.ceil(micro_batches / experiment.accumulate)
    return steps if options.max_steps is None else min(steps, options.max_steps)
