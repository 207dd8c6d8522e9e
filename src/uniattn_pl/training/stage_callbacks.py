"""The callbacks of a stage's Trainer, in the order in which they act behind each step."""

from __future__ import annotations

from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.training_section import BEST, HELD_OUT_LOSS
from uniattn_pl.data import ResumedProgress
from uniattn_pl.data.loader import ResumableLoader
from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.training.callbacks.best_weights import BestWeights
from uniattn_pl.training.callbacks.divergence_stop import DivergenceStop
from uniattn_pl.training.callbacks.early_stop import EarlyStop
from uniattn_pl.training.callbacks.ema_early_stop import EMAEarlyStop
from uniattn_pl.training.callbacks.held_out_early_stop import HeldOutEarlyStop
from uniattn_pl.training.callbacks.held_out_loss import HeldOutLoss, Watcher
from uniattn_pl.training.callbacks.release import ReleaseTrainingState
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.sharding import Sharding
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.callbacks.step_metrics import StepMetrics
from uniattn_pl.training.callbacks.throughput import Throughput
from uniattn_pl.training.callbacks.training_progress import TrainingProgress
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext
from uniattn_pl.training.memory_estimate import learns_from_maps
from uniattn_pl.training.milestones import Milestones

SHARDED = "sharded"


@dataclass(frozen=True)
class StageCallbacks:
    """All callbacks of a stage, and those that are asked afterwards.

    Attributes:
        early_stop: None: it runs all of its steps.
        best: None: it leaves the weights behind its last step.
    """

    all: list[Callback]
    throughput: Throughput
    early_stop: EarlyStop | None
    best: BestWeights | None


def stage_callbacks(
    number: int,
    experiment: Experiment,
    milestones: Milestones,
    context: FitContext,
    *,
    store: CheckpointStore,
    loader: ResumableLoader,
) -> StageCallbacks:
    """Build the callbacks of stage 1 or 2.

    Args:
        milestones: measures the held-out loss.
        store: of the stage's checkpoints.
        loader: of its training rows.
    """
    training = experiment.config.training
    prefix, sharded = f"stage{number}/", training.checkpoint_format == SHARDED
    throughput, early_stop = Throughput(prefix), _early_stop(number, experiment.config)
    best = BestWeights(store, sharded=sharded) if training.keep == BEST else None
    watchers: list[Watcher] = [] if best is None else [best]
    if isinstance(early_stop, HeldOutEarlyStop):
        watchers.append(early_stop)
    callbacks: list[Callback] = [DivergenceStop()]
    callbacks += [callback for callback in (early_stop, best) if callback is not None]
    callbacks += [throughput, HeldOutLoss(milestones.score, training.eval_every_steps, watchers)]
    callbacks += _reporting(number, experiment, context)
    callbacks += [RngState(), ResumedProgress(loader), ReleaseTrainingState()]
    if experiment.strategy == "fsdp":
        callbacks.append(Sharding(number, experiment.precision, cpu_offload=training.cpu_offload))
    callbacks.append(StepCheckpoint(store, training.checkpoint_every_steps, context.preemption, sharded=sharded))
    return StageCallbacks(callbacks, throughput, early_stop, best)


def _early_stop(number: int, config: ExperimentConfig) -> EarlyStop | None:
    options = config.training.early_stop
    if not options.enabled or number not in options.stages:
        return None
    if options.monitor == HELD_OUT_LOSS:
        return HeldOutEarlyStop(options.patience, options.min_delta)
    return EMAEarlyStop(options.decay, options.patience, options.min_delta)


def _reporting(number: int, experiment: Experiment, context: FitContext) -> list[Callback]:
    """Callbacks of rank 0 alone."""
    if not context.cluster.is_main:
        return []
    whole = "low-rank updates" if experiment.config.training.lora.enabled else "all parameters"
    first = "W_c, queries and keys of sources" if learns_from_maps(experiment.config, 1) else "W_c"
    label = f"stage {number} ({first if number == 1 else whole})"
    return [StepMetrics(f"stage{number}/"), TrainingProgress(label, context.console)]
