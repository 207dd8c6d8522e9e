"""What a fit of an encoder-decoder model cannot be asked for, all of it said before anything slow."""

from __future__ import annotations

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.data_section import SELF
from uniattn_pl.errors import UserError
from uniattn_pl.plan import LayerPlan, ModelShape

ZERO = "zero"  # the initialiser that fits nothing
TEXT = "text"


def check_encoder(loaded: LoadedConfig, shape: ModelShape, plan: LayerPlan | None) -> None:
    """Check that an experiment asks of a model with an encoder what there is for it.

    Args:
        plan: None: it is chosen by measurement.

    Raises:
        UserError: with each key that asks for something else.
    """
    if shape.encoder is None:
        return
    config, own = loaded.config, f"a {shape.model_type} model has an encoder beside its decoder"
    problems = []
    if loaded.architecture.measured:
        problems.append(
            f"architecture.name: {loaded.architecture.name} measures changes in the stream of a decoder alone; {own}. "
            "Name the layers, with uniattn, shared_attention, cla, llmdrop or given."
        )
    if plan is not None and plan.compensated and config.calibration.initialiser != ZERO:
        problems.append(
            f"calibration.initialiser: {config.calibration.initialiser} is fitted in the stream of a decoder alone; "
            f"{own}. Set it to {ZERO}: W_c then trains from zero."
        )
    if config.training.distillation.teacher is not None:
        problems.append(f"training.distillation.teacher: {own}, for which there is no distillation; set it to null.")
    if SELF in config.data.sources:
        problems.append(f"data.source: '{SELF}' is text that a decoder alone continues; {own}. Name rows with prompts.")
    if config.data.format == TEXT:
        problems.append(f"data.format: a plain text has no prompt to read; {own}. Name rows with prompts.")
    if problems:
        raise UserError(*problems)
