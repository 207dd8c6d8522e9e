"""Where the compensations start: fitted on a sample of the training data (paper section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from torch import Tensor, nn
from transformers import PreTrainedModel

from uniattn_pl.calibration import CalibrationReport, calibrate
from uniattn_pl.calibration.device_copies import free_share
from uniattn_pl.calibration.layers import Progress
from uniattn_pl.calibration.rank_choice import RANK_KEEPS
from uniattn_pl.calibration.refinement import Refinement
from uniattn_pl.errors import UserError
from uniattn_pl.resilience import ranks

Batches = Sequence[dict[str, Tensor]]


class CompensationInit(pl.Callback):
    """Fits W_c (and, jointly, W_o) of a converted model against the original one when a fit starts.

    Skipped when the fit is resumed from a checkpoint or the fit was done before: trained weights are never
    overwritten. Ranks of a process group divide the batches, and all get the same weights.

    Args:
        original: the unmodified model, or a function that loads it (called only when needed).
        batches: calibration batches of input_ids and attention_mask [B, L], right padded; the same on every rank.
        held_out: batches on which the error before and after is reported.
        initialiser: "zero", "theorem37", "least_squares" or "joint_least_squares".
        ridge: relative to the mean diagonal of the Gram matrix, or "auto".
        head_alignment: "none", "similarity" or "output_error".
        rank_keeps: share of the repaired error that ranks keep which the plan leaves open; a Trainer's optimizer would
            not have what they make of W_c, so that such a model is initialised before.
        refinement: of the weights of each layer behind their closed form; None: none.
        record: folder that keeps every solved layer, from which a killed pass goes on.
        contents: digest of the original's weights, where it is known; a record of others is refused.
        memory_limit_bytes: hidden streams beyond this are kept in temporary files; 0: all of them.
        device_limit_bytes: so much of them stays on the device first; None: a quarter of what is free on a GPU.
        progress: called with (done, total, what).

    Attributes:
        report: the report of the pass this process ran, else None.
    """

    def __init__(
        self,
        original: PreTrainedModel | Callable[[], PreTrainedModel],
        batches: Batches,
        held_out: Batches,
        *,
        initialiser: str = "joint_least_squares",
        ridge: float | str = 1e-2,
        head_alignment: str = "none",
        rank_keeps: float = RANK_KEEPS,
        refinement: Refinement | None = None,
        record: Path | None = None,
        contents: str | None = None,
        memory_limit_bytes: int = 0,
        device_limit_bytes: int | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.original, self.batches, self.held_out = original, batches, held_out
        self.initialiser, self.ridge, self.head_alignment = initialiser, ridge, head_alignment
        self.rank_keeps, self.refinement = rank_keeps, refinement
        self.record, self.contents = record, contents
        self.memory_limit_bytes, self.device_limit_bytes = memory_limit_bytes, device_limit_bytes
        self.progress = progress
        self.done = False
        self.report: CalibrationReport | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"done": self.done}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.done = state_dict["done"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.done or trainer.ckpt_path is not None:
            self.done = True
            return
        model = _converted_model(pl_module)
        if model.layer_plan.open_ranks:  # type: ignore[union-attr, operator]
            raise UserError(
                "the ranks of W_c are to be chosen (auto), which replaces parameters that the optimizer already has: "
                "call initialise(model) before Trainer.fit, or give W_c a rank."
            )
        self.initialise(model)

    def initialise(self, converted: PreTrainedModel) -> CalibrationReport:
        """Set the compensations of `converted` in place and return the report; usable without a Trainer."""
        original = self.original if isinstance(self.original, PreTrainedModel) else self.original()
        if original.device != converted.device:
            original.to(converted.device)  # type: ignore[arg-type]
        limit = self.device_limit_bytes
        self.report = calibrate(
            original,
            converted,
            list(self.batches),
            list(self.held_out),
            initialiser=self.initialiser,
            ridge=self.ridge,
            head_alignment=self.head_alignment,
            rank_keeps=self.rank_keeps,
            refinement=self.refinement,
            rank=ranks.rank(),
            world_size=ranks.world_size(),
            record=self.record,
            contents=self.contents,
            memory_limit_bytes=self.memory_limit_bytes,
            device_limit_bytes=free_share(converted.device) if limit is None else limit,
            progress=self.progress,
        )
        self.done = True
        return self.report


def _converted_model(module: nn.Module) -> PreTrainedModel:
    """The Hugging Face model with a layer plan inside a LightningModule."""
    for child in module.modules():
        if isinstance(child, PreTrainedModel) and getattr(child, "layer_plan", None) is not None:
            return child
    raise UserError(
        "CompensationInit found no model with a layer plan in this LightningModule: "
        "convert it first with uniattn_pl.apply_architecture."
    )
