"""What a fit of an encoder-decoder model cannot be asked for, all of it said before anything slow."""

from __future__ import annotations

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.sections.data_section import SELF
from uniattn_pl.errors import UserError
from uniattn_pl.plan import LayerPlan, ModelShape

TEXT, NO_ALIGNMENT = "text", "none"


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
    if config.calibration.head_alignment != NO_ALIGNMENT:
        problems.append(f"calibration.head_alignment: heads are chosen in decoders alone; {own}. Set it to none.")
    if config.calibration.refine.steps:
        problems.append(f"calibration.refine.steps: weights are refined in decoders alone; {own}. Set it to null.")
    if config.training.distillation.teacher is not None:
        problems.append(f"training.distillation.teacher: {own}, for which there is no distillation; set it to null.")
    if SELF in config.data.training_sources:
        problems.append(f"data.source: '{SELF}' is text that a decoder alone continues; {own}. Name rows with prompts.")
    if config.data.format == TEXT:
        problems.append(f"data.format: a plain text has no prompt to read; {own}. Name rows with prompts.")
    if problems:
        raise UserError(*problems)
