"""The ways in which one model is measured: as it is, with a compressed cache, with more attention dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from uniattn_pl import costs
from uniattn_pl.config.schema import EvaluationConfig
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.results import Figure, Result
from uniattn_pl.modeling import drop_attention, shape_of
from uniattn_pl.modeling.copies import sharing_copy
from uniattn_pl.plan import LayerPlan
from uniattn_pl.search.importance import attention_importance
from uniattn_pl.tracking.tags import drop_variant, h2o_variant

IMPORTANCE = "importance"


@dataclass(frozen=True)
class Variant:
    """One way of measuring; `retain_rate` is the share of a prompt's cache that H2O keeps."""

    retain_rate: float | None = None
    dropped: int | None = None

    @property
    def suffix(self) -> str:
        """What the names of its results end with."""
        if self.retain_rate is not None:
            return f"_{h2o_variant(self.retain_rate)}"
        return "" if self.dropped is None else f"_{drop_variant(self.dropped)}"


def variants_of(options: EvaluationConfig, retain_rate: float | None) -> list[Variant]:
    """What an evaluation measures; a rate on the command line (`--h2o`) stands alone."""
    if retain_rate is not None:
        return [Variant(retain_rate=retain_rate)]
    compressed = [Variant(retain_rate=rate) for rate in dict.fromkeys(options.h2o)]
    return [Variant(), *compressed, *(Variant(dropped=count) for count in sorted(set(options.drop)))]


def importance_result(model: PreTrainedModel, batches: list[dict[str, Any]]) -> Result:
    """How much the attention of each layer changes the stream, as a result that is kept like others."""
    found = attention_importance(model, batches)
    return Result(IMPORTANCE, len(batches), {f"layer_{layer}": Figure(value) for layer, value in enumerate(found)})


def layers_to_drop(plan: LayerPlan, importance: Result, count: int) -> list[int]:
    """The `count` layers whose attention is dropped first: that reuse a map and change the stream least (Appendix B).

    Raises:
        UserError: the plan has fewer such layers.
    """
    reusing = [row.index for row in plan.rows if row.role == "reuse"]
    if count > len(reusing):
        raise UserError(
            f"evaluation.drop: {count} layers cannot be dropped; {len(reusing)} layers of this model reuse a map."
        )
    return sorted(sorted(reusing, key=lambda layer: importance.figures[f"layer_{layer}"].value)[:count])


def with_dropped(model: PreTrainedModel, layers: list[int]) -> PreTrainedModel:
    """The model without the attention, and the W_c, of these layers; shares its weights."""
    return drop_attention(sharing_copy(model), layers)


def retain_rate_of(model: PreTrainedModel) -> float:
    """Bytes of its cache over those of the unmodified model."""
    return costs.kv_retain_rate(model.layer_plan, shape_of(model.config), length=costs.CACHE_LENGTH)  # type: ignore[arg-type]
