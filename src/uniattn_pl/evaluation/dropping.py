"""Which layers of a trained model lose their attention first (paper Figure 5); no torch at import time."""

from __future__ import annotations

from collections.abc import Iterable

from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.evaluation_results import Result
from uniattn_pl.plan import LayerPlan


def check_drop(plan: LayerPlan, counts: Iterable[int]) -> None:
    """Check evaluation.drop against a plan.

    Raises:
        UserError: the plan has fewer layers that reuse a map.
    """
    count, reusing = max(counts, default=0), len(plan.reusing)
    if count > reusing:
        raise UserError(
            f"evaluation.drop: {count} layers cannot be dropped; {reusing} layers of this model reuse a map."
        )


def layers_to_drop(plan: LayerPlan, importance: Result, count: int) -> list[int]:
    """Return the `count` reuse layers whose attention changes the stream least; they are dropped first (Appendix B)."""
    ranked = sorted(plan.reusing, key=lambda layer: importance.figures[f"layer_{layer}"].value)
    return sorted(ranked[:count])
