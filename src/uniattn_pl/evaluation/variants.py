"""The ways in which one model is measured: as it is, with a compressed cache, with more attention dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl.config.sections.measuring_sections import EvaluationConfig
from uniattn_pl.evaluation.evaluation_results import Estimate, Result
from uniattn_pl.search.importance import attention_importance
from uniattn_pl.tracking.tags import SERVED_VARIANT, drop_variant, h2o_variant

IMPORTANCE = "importance"


@dataclass(frozen=True)
class Variant:
    """One way of measuring.

    Attributes:
        retain_rate: the fraction of a prompt's cache that H2O keeps; None: all.
        dropped: reuse layers whose attention is left out; None: none.
        served: what a server says is measured, and not the model itself.
    """

    retain_rate: float | None = None
    dropped: int | None = None
    served: bool = False

    @property
    def suffix(self) -> str:
        """The ending of the names of its results."""
        if self.served:
            return f"_{SERVED_VARIANT}"
        if self.retain_rate is not None:
            return f"_{h2o_variant(self.retain_rate)}"
        return "" if self.dropped is None else f"_{drop_variant(self.dropped)}"


def variants_of(options: EvaluationConfig, retain_rate: float | None, *, served: bool = False) -> list[Variant]:
    """What an evaluation measures; a rate or a server on the command line (`--h2o`, `--server`) stands alone."""
    if served:
        return [Variant(served=True)]
    if retain_rate is not None:
        return [Variant(retain_rate=retain_rate)]
    compressed = [Variant(retain_rate=rate) for rate in dict.fromkeys(options.h2o)]
    return [Variant(), *compressed, *(Variant(dropped=count) for count in sorted(set(options.drop)))]


def importance_result(model: PreTrainedModel, batches: list[dict[str, Any]]) -> Result:
    """How much the attention of each layer changes the stream, as a result that is kept like others."""
    importance = attention_importance(model, batches)
    return Result(
        IMPORTANCE, len(batches), {f"layer_{layer}": Estimate(value) for layer, value in enumerate(importance)}
    )
