"""T5's position biases: its lowest attention makes them, and every layer hands them on to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uniattn_pl.families.inspection import POSITION_BIAS
from uniattn_pl.plan import LayerPlan

MAKES_BIAS, ARGUMENT = "has_relative_attention_bias", "position_bias"


def hand_on_position_bias(attentions: Sequence[Any], plan: LayerPlan) -> None:
    """Give the part that makes the biases to the lowest attention that computes, in place; nothing in other families.

    A layer without attention has no keys whose positions it could know of. Of a plan in which no layer attends the part
    stays where it is, with nothing to do.
    """
    maker = next((attention for attention in attentions if getattr(attention, MAKES_BIAS, False)), None)
    lowest = next((row.index for row in plan.rows if row.traits.computes), None)
    if maker is None or lowest is None or attentions[lowest] is maker:
        return
    setattr(attentions[lowest], POSITION_BIAS, maker.relative_attention_bias)
    setattr(attentions[lowest], MAKES_BIAS, True)
    delattr(maker, POSITION_BIAS)
    setattr(maker, MAKES_BIAS, False)
