"""Which parameters train in which stage (paper Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import sees_images
from uniattn_pl.families.inspection import decoder_of
from uniattn_pl.modeling.attention.compensation_layer import COMPENSATION


def freeze_for_stage(module: nn.Module, stage: int, besides: Iterable[nn.Parameter] = ()) -> int:
    """Let only the compensations train in stage 1 and everything in stage 2; return the trainable parameters.

    Rows are texts: a tower for images and what connects it with the text model stay as they are.

    Args:
        besides: parameters that train in stage 1, too.

    Raises:
        UserError: stage 1 of a module without a W_c, or a stage other than 1 and 2.
    """
    if stage not in (1, 2):
        raise UserError(f"there is no training stage {stage}; choose 1 (only W_c) or 2 (all parameters).")
    parameters = dict(module.named_parameters())
    if stage == 1 and not any(COMPENSATION in name for name in parameters):
        raise UserError(
            "stage 1 trains the compensations W_c, but this model has none: "
            "choose an architecture with compensation=true, or disable training.stage1."
        )
    for name, parameter in parameters.items():
        parameter.requires_grad_(stage == 2 or COMPENSATION in name)
    for parameter in _for_images(module):
        parameter.requires_grad_(False)
    for parameter in besides:
        parameter.requires_grad_(True)
    return sum(p.numel() for p in parameters.values() if p.requires_grad)


def _for_images(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that no text reaches, of a model with a tower for images within a module."""
    wrappers = (part for part in module.modules() if isinstance(part, PreTrainedModel) and sees_images(part.config))
    wrapper = next(wrappers, None)
    if wrapper is None:
        return []
    head: Any = wrapper.get_output_embeddings()
    of_text = {id(parameter) for part in (decoder_of(wrapper), head) for parameter in part.parameters()}
    return [parameter for parameter in wrapper.parameters() if id(parameter) not in of_text]


class StageFreezing(pl.Callback):
    """Freezes a module's parameters for one stage, before its optimizer is built.

    Use one Trainer per stage: flipping `requires_grad` in the middle of a fit breaks DDP and resuming.
    A module that builds its model in `configure_model` calls `freeze_for_stage` there instead.

    Args:
        stage: 1 (only `*.w_c.*`) or 2 (everything).
    """

    def __init__(self, stage: int) -> None:
        self.stage = stage

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            freeze_for_stage(pl_module, self.stage)
