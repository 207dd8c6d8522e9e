"""The model that a phase has saved, read again and held against the one in memory: a fit's figures are its files'."""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedModel

from uniattn_pl.errors import RunFailure, UserError
from uniattn_pl.evaluation.held_out import token_losses
from uniattn_pl.losses.row_logits import INPUTS
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_context import FitContext
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.milestones import Milestones
from uniattn_pl.training.stage_model import AUTOCAST_DTYPES, is_quantised

ROWS = 4  # of each rank; a fit of a small model on a CPU should not wait for this


@dataclass(frozen=True)
class InMemory:
    """What a model in memory says of a few held-out rows, kept while it makes room for the one of its files.

    Attributes:
        losses: of each response token of this rank's rows [N], nats.
        rounding: the largest difference from them, root mean square, that is no other model.
    """

    losses: Tensor
    rounding: float

    @classmethod
    def of(cls, model: nn.Module, experiment: Experiment, milestones: Milestones, context: FitContext) -> InMemory:
        """Run a few held-out rows; every rank calls this."""
        losses = _losses(model, milestones, context)
        return cls(losses, _rounding(next(model.parameters()).dtype, experiment))


def reread(
    folder: Path, in_memory: InMemory, models: FitModels, milestones: Milestones, context: FitContext
) -> PreTrainedModel:
    """Load what rank 0 has saved as every later command does, on every rank, and check that it is what was in memory.

    Raises:
        RunFailure: it cannot be loaded, or it is another model; with the losses of both.
    """
    context.cluster.barrier()  # the folder is complete
    gc.collect()  # a trainer and its model refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    try:
        model = models.saved(folder)
        losses = _losses(model, milestones, context)
    # UserError: weights and config disagree; the others are how transformers and safetensors refuse damaged files
    except (UserError, SafetensorError, OSError) as error:
        raise RunFailure(f"the model saved in {folder} cannot be loaded again: {error}") from error
    _compare(folder, in_memory, losses, context)
    return model


def _losses(model: nn.Module, milestones: Milestones, context: FitContext) -> Tensor:
    """Of the response tokens [N] in this rank's first held-out rows."""
    batch = milestones.validation[0]
    rows = {name: batch[name][:ROWS] for name in (*INPUTS, "labels") if name in batch}
    return token_losses(model, rows, device=context.cluster.device)


def _compare(folder: Path, in_memory: InMemory, losses: Tensor, context: FitContext) -> None:
    before = in_memory.losses
    same = (before == losses) | (before.isnan() & losses.isnan())
    differences = (before - losses).masked_fill(same, 0.0)
    sums = [float(before.sum()), float(losses.sum()), float(differences.square().sum()), float(len(losses))]
    trained, saved, squares, tokens = context.cluster.sums(sums)
    difference = math.sqrt(squares / max(tokens, 1.0))
    if difference <= in_memory.rounding:
        return
    raise RunFailure(
        f"the model saved in {folder} is not the one in memory: on {int(tokens)} held-out response tokens the loss is "
        f"{trained / tokens:.6f} in memory and {saved / tokens:.6f} from its files (a token's differs by "
        f"{difference:.2g}, rounding explains {in_memory.rounding:.2g}). The folder is kept and the fit is not "
        "finished; the same command trains on from the last checkpoint and saves again."
    )


def _rounding(dtype: torch.dtype, experiment: Experiment) -> float:
    """Half the digits of the type it computes in: for sums in another order, and updates merged into such weights."""
    if experiment.precision in AUTOCAST_DTYPES and (experiment.strategy == "fsdp" or is_quantised(experiment)):
        dtype = AUTOCAST_DTYPES[experiment.precision]  # shards are gathered in it, matrices in 4 bits compute in it
    return math.sqrt(torch.finfo(dtype).eps)
