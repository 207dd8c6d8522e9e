"""One training stage: one Lightning Trainer, from a model folder to a model folder."""

from __future__ import annotations

import logging
import math
import warnings
from dataclasses import asdict
from pathlib import Path

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from uniattn_pl.config.schema import StageConfig
from uniattn_pl.data import ResumedProgress
from uniattn_pl.errors import UserError
from uniattn_pl.tracking.results import StageSummary
from uniattn_pl.tracking.stage_logger import StageLogger
from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
from uniattn_pl.training.callbacks.held_out_loss import HeldOutLoss
from uniattn_pl.training.callbacks.non_finite_stop import NonFiniteStop
from uniattn_pl.training.callbacks.progress import TrainingProgress
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.callbacks.throughput import Throughput
from uniattn_pl.training.module import PostTrainingModule
from uniattn_pl.training.session import FitSession
from uniattn_pl.training.storage import AtomicCheckpointIO, copy_model, save_model

FOLDERS = {1: "stage1", 2: "final"}


def stage_options(session: FitSession, stage: int) -> StageConfig | None:
    """The options of a stage, or None when it does not run: disabled, or stage 1 with nothing to compensate."""
    options = session.config.training.stage1 if stage == 1 else session.config.training.stage2
    return options if options.enabled and (stage == 2 or session.plan.compensated) else None


def run_stage(session: FitSession, stage: int) -> None:
    """Train a stage from the folder of the one before (or its checkpoint), save, measure and commit it.

    A stage always starts from files, also in a process that has the model in memory: a resumed fit
    then takes exactly the same path. Ranks other than 0 only train.

    Raises:
        TrainingDivergedError: the loss or a gradient is not finite.
    """
    source, options = _source(session, stage), stage_options(session, stage)
    if options is None:
        if session.rank == 0:
            if stage == 2:
                copy_model(source, session.folder / FOLDERS[2])
            session.manifest.commit(session.folder, {})
        return
    module, summary = _train(session, stage, options, source)
    if session.rank != 0:
        return
    offset = session.manifest.step_offset + summary.steps
    save_model(session.folder / FOLDERS[stage], module.hosted, session.tokenizer)
    results = {"stage": asdict(summary), "milestones": session.milestone(f"stage{stage}", module.hosted, step=offset)}
    if session.run is not None:
        session.run.flush()
    session.manifest.commit(session.folder, results, step_offset=offset)
    session.checkpoint(stage).unlink(missing_ok=True)  # the model folder takes its place


def _source(session: FitSession, stage: int) -> Path:
    trained = session.folder / FOLDERS[1]
    # a leftover stage1 folder of a fit that does not run stage 1 is not ours
    return trained if stage == 2 and stage_options(session, 1) is not None else session.folder / "initial"


def _train(
    session: FitSession, stage: int, options: StageConfig, source: Path
) -> tuple[PostTrainingModule, StageSummary]:
    """Fit one stage, resuming from its checkpoint if there is one."""
    pl.seed_everything(session.config.seed + stage, verbose=False)
    loader = session.data.train_dataloader()
    steps = _total_steps(session, options, len(loader))
    module = PostTrainingModule(
        lambda: _trainable(session, source),
        stage=stage,
        options=options,
        max_grad_norm=session.config.training.max_grad_norm,
    )
    throughput, early_stop = Throughput(f"stage{stage}/"), _early_stop(session, stage)
    callbacks: list[Callback] = [NonFiniteStop(), *early_stop, throughput, *_reporting(session, stage), RngState()]
    checkpoint = session.checkpoint(stage)
    callbacks.append(ResumedProgress(loader))
    callbacks.append(StepCheckpoint(checkpoint, session.config.training.checkpoint_every_steps))
    logger = False if session.run is None else StageLogger(session.run, session.manifest.step_offset)
    trainer = session.trainer(
        logger=logger,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
        max_steps=steps,
        accumulate_grad_batches=session.accumulate,
    )
    _fit(trainer, module, loader, checkpoint)
    stopped = bool(early_stop and early_stop[0].stopped_at is not None)
    summary = StageSummary(
        f"stage{stage}", trainer.global_step, stopped, throughput.tokens_per_second, throughput.step_seconds
    )
    return module, summary


def _fit(trainer: pl.Trainer, module: PostTrainingModule, loader: object, checkpoint: Path) -> None:
    with warnings.catch_warnings():
        # Lightning would have workers for a loader that is tokenised in memory, a validation loop where the
        # milestones are measured instead, and calls what PyTorch has deprecated
        warnings.filterwarnings("ignore", message=".*but have no `val_dataloader`.*")
        warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
        resume = str(checkpoint) if checkpoint.exists() else None
        try:
            trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
        except SystemExit:
            if trainer.interrupted:  # Lightning turns Ctrl-C into exit(1)
                raise KeyboardInterrupt from None
            raise


def _trainable(session: FitSession, source: Path) -> PreTrainedModel:
    model = session.load(source)
    if session.config.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def _total_steps(session: FitSession, options: StageConfig, micro_batches: int) -> int:
    """Optimizer steps of a stage; the last, smaller batch of an epoch is a step too."""
    if micro_batches == 0:
        raise UserError(
            f"there are fewer training rows than one micro batch on each of {session.world_size} device(s); "
            "lower training.micro_batch_size or data.validation_size, or give more rows."
        )
    steps = options.max_epochs * math.ceil(micro_batches / session.accumulate)
    return steps if options.max_steps is None else min(steps, options.max_steps)


def _early_stop(session: FitSession, stage: int) -> list[EMAEarlyStop]:
    options = session.config.training.early_stop
    if stage != 1 or not options.enabled:
        return []
    return [EMAEarlyStop(options.decay, options.patience, options.min_delta)]


def _reporting(session: FitSession, stage: int) -> list[Callback]:
    """Callbacks of rank 0 alone."""
    if session.rank != 0:
        return []
    label = f"stage {stage} ({'W_c' if stage == 1 else 'all parameters'})"
    return [StepMetrics(f"stage{stage}/"), HeldOutLoss(session.validation), TrainingProgress(label, session.console)]


def quiet_libraries() -> None:
    """Keep banners, tips and the bars of single-file transfers out of the fit's own output."""
    disable_progress_bar()
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
