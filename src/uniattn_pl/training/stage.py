"""One training stage: one Lightning Trainer, from a model folder to a model folder."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from transformers.utils.logging import disable_progress_bar

from uniattn_pl.config.schema import StageConfig
from uniattn_pl.data import ResumedProgress
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.checkpoints import SHARDS, CheckpointStore
from uniattn_pl.resilience.model_folders import copy_model, damaged_files, file_sums
from uniattn_pl.tracking.fit_result import INITIAL, STAGE1, StageSummary
from uniattn_pl.tracking.stage_logger import StageLogger
from uniattn_pl.training.callbacks.divergence_stop import DivergenceStop
from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
from uniattn_pl.training.callbacks.held_out_loss import HeldOutLoss
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.sharding import Sharding
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.callbacks.throughput import Throughput
from uniattn_pl.training.callbacks.training_progress import TrainingProgress
from uniattn_pl.training.lightning_module import PostTrainingModule
from uniattn_pl.training.session import FitSession
from uniattn_pl.training.stage_model import build_model, fill_shards, save_result

SHARDED = "sharded"
FOLDERS = {1: STAGE1, 2: "final"}


def stage_options(session: FitSession, stage: int) -> StageConfig | None:
    """The options of a stage, or None when it does not run: disabled, or stage 1 with nothing to compensate."""
    options = session.config.training.stage1 if stage == 1 else session.config.training.stage2
    return options if options.enabled and (stage == 2 or session.plan.compensated) else None


def run_stage(session: FitSession, stage: int) -> None:
    """Train a stage from the folder of the one before (or its checkpoint), save, measure and commit it.

    A stage always starts from files, also in a process that has the model in memory: a resumed fit
    then takes exactly the same path. Where the folder is not as it was written, its phase is run again first.

    Raises:
        TrainingDivergedError: the loss or a gradient is not finite.
        CheckpointError: a checkpoint cannot be written.
        Preempted: a signal asked to end.
    """
    source, options = _source(session, stage), stage_options(session, stage)
    if _damaged(session, source):
        session.rewind("initialise" if source == INITIAL else source)
        return
    folder, results = session.folder / FOLDERS[stage], dict[str, Any]()
    if options is None:
        if stage == 2 and session.cluster.is_main:
            copy_model(session.folder / source, folder)
        session.commit(results)
        return
    store = CheckpointStore(session.folder / "checkpoints" / f"stage{stage}", session.console)
    module, summary = _train(session, stage, options, session.folder / source, store)
    offset = session.manifest.step_offset + summary.steps
    save_result(session, module.hosted, folder)
    results |= {"stage": asdict(summary), "milestones": session.milestone(f"stage{stage}", module.hosted, step=offset)}
    if session.cluster.is_main:
        results["files"] = file_sums(folder)
    if session.run is not None:
        session.run.flush()
    session.commit(results, step_offset=offset)
    if session.cluster.is_main:
        store.clear()  # the model folder takes its place


def _source(session: FitSession, stage: int) -> str:
    """The folder a stage starts from, which is named like the phase or milestone that wrote it."""
    # a leftover stage1 folder of a fit that does not run stage 1 is not ours
    return STAGE1 if stage == 2 and stage_options(session, 1) is not None else INITIAL


def _damaged(session: FitSession, source: str) -> bool:
    """Whether a model folder differs from what its phase has written; rank 0 looks, and tells."""
    names: list[str] = []
    if session.cluster.is_main:
        phase = "initialise" if source == INITIAL else source
        recorded = session.manifest.results[phase].get("files", {})
        names = damaged_files(session.folder / source, recorded)
        if names:
            session.console.print(f"{session.folder / source} is damaged ({', '.join(names)}); writing it again.")
    return bool(session.cluster.broadcast(names))


def _train(
    session: FitSession, stage: int, options: StageConfig, source: Path, store: CheckpointStore
) -> tuple[PostTrainingModule, StageSummary]:
    """Fit one stage, resuming from its newest good checkpoint if there is one."""
    pl.seed_everything(session.config.seed + stage, verbose=False)
    loader = session.data.train_dataloader()
    steps = _total_steps(session, options, len(loader))
    shards = session.strategy == "fsdp"
    module = PostTrainingModule(
        lambda: build_model(session, stage, source),
        stage=stage,
        options=options,
        max_grad_norm=session.config.training.max_grad_norm,
        chunked_loss=session.config.training.chunked_loss,
        fill=(lambda model: fill_shards(session, model, source)) if shards else None,
    )
    throughput, early_stop = Throughput(f"stage{stage}/"), _early_stop(session, stage)
    callbacks: list[Callback] = [DivergenceStop(), *early_stop, throughput, *_reporting(session, stage)]
    callbacks += [HeldOutLoss(session.score), RngState(), ResumedProgress(loader)]
    if shards:
        callbacks.append(Sharding(stage, session.precision, cpu_offload=session.config.training.cpu_offload))
    every = session.config.training.checkpoint_every_steps
    sharded = session.config.training.checkpoint_format == SHARDED
    callbacks.append(StepCheckpoint(store, every, session.preemption, sharded=sharded))
    logger = False if session.run is None else StageLogger(session.run, session.manifest.step_offset)
    trainer = session.trainer(
        logger=logger,
        callbacks=callbacks,
        plugins=[store.io],
        max_steps=steps,
        accumulate_grad_batches=session.accumulate,
    )
    _fit(session, trainer, module, loader, store.newest_good())
    stopped = bool(early_stop and early_stop[0].stopped_at is not None)
    summary = StageSummary(
        f"stage{stage}", trainer.global_step, stopped, throughput.tokens_per_second, throughput.step_seconds
    )
    return module, summary


def _fit(
    session: FitSession, trainer: pl.Trainer, module: PostTrainingModule, loader: object, resume: Path | None
) -> None:
    if resume is not None and resume.name == SHARDS and session.strategy != "fsdp":
        raise UserError(
            f"the checkpoint {resume} was written in shards, which training.strategy=fsdp reads, also on one device."
        )
    with warnings.catch_warnings(), session.preemption.deferred():
        # Lightning would have workers for a loader that is tokenised in memory, a validation loop where the
        # milestones are measured instead, and calls what PyTorch has deprecated
        warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        try:
            trainer.fit(module, loader, ckpt_path=None if resume is None else str(resume), weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1)
                raise KeyboardInterrupt from None
            raise
    session.preemption.check()  # a signal behind the last step


def _total_steps(session: FitSession, options: StageConfig, micro_batches: int) -> int:
    """Optimizer steps of a stage; the last, smaller batch of an epoch is a step too."""
    steps = options.max_epochs * math.ceil(micro_batches / session.accumulate)
    return steps if options.max_steps is None else min(steps, options.max_steps)


def _early_stop(session: FitSession, stage: int) -> list[EMAEarlyStop]:
    options = session.config.training.early_stop
    if stage != 1 or not options.enabled:
        return []
    return [EMAEarlyStop(options.decay, options.patience, options.min_delta)]


def _reporting(session: FitSession, stage: int) -> list[Callback]:
    """Callbacks of rank 0 alone."""
    if not session.cluster.is_main:
        return []
    whole = "low-rank updates" if session.config.training.lora.enabled else "all parameters"
    label = f"stage {stage} ({'W_c' if stage == 1 else whole})"
    return [StepMetrics(f"stage{stage}/"), TrainingProgress(label, session.console)]


def quiet_libraries() -> None:
    """Keep banners, tips and the bars of single-file transfers out of the fit's own output."""
    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
