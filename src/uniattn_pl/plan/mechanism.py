"""What a plan saves by, in one word: what figures are coloured by and runs are grouped by."""

from __future__ import annotations

from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.roles import MIXED, UNMODIFIED


def mechanism_of(plan: LayerPlan) -> str:
    """The mechanism that all changed layers of a plan share, `UNMODIFIED` without any, `MIXED` for several."""
    found = {row.traits.mechanism for row in plan.rows} - {UNMODIFIED}
    return found.pop() if len(found) == 1 else MIXED if found else UNMODIFIED
