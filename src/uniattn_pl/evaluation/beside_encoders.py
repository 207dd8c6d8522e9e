"""What of an evaluation is there for encoder-decoder models: held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from uniattn_pl.config.sections.measuring_sections import EvaluationConfig
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.variants import Variant
from uniattn_pl.families.encoder_decoder import decoder_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OF_ROWS = ("held_out", "divergence")


def check_asked(options: EvaluationConfig, variants: Sequence[Variant], tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that an encoder-decoder model is asked for what it can be asked for.

    Raises:
        UserError: with each key that asks for something else.
    """
    if decoder_start(tokenizer) is None:
        return
    why = f"of a model with an encoder beside its decoder, evaluation.probes {' and '.join(OF_ROWS)} are measured"
    problems = [f"evaluation.tasks: {why}; set it to []."] if options.tasks else []
    others = [probe for probe in options.probes if probe not in OF_ROWS]
    if others:
        problems.append(f"evaluation.probes: {', '.join(others)} asks for one text that goes on; {why}.")
    if any(variant.retain_rate is not None for variant in variants):
        problems.append(f"evaluation.h2o (--h2o): {why}, with the whole cache; set it to [].")
    if any(variant.dropped is not None for variant in variants):
        problems.append(f"evaluation.drop: {why}, as the model is; set it to [].")
    if any(variant.served for variant in variants):
        problems.append(f"--server: {why}, in this process.")
    if problems:
        raise UserError(*problems)
