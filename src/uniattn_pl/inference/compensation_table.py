"""The table that `plan` and `bench` show of what W_c costs beside what was saved."""

from __future__ import annotations

from collections.abc import Mapping

from uniattn_pl.display.text_table import count_text, print_table, table_text
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.compensation_cost import CompensationCost

TITLE = "W_c beside what the removed projections saved"
COLUMNS = ("model", "W_c parameters", "saved", "W_c / saved", "W_c FLOPs per token", "saved", "W_c / saved")
OPEN_RANKS = "rank of W_c not chosen yet (calibration.rank=auto): counted in full, which is the most it can cost"


def print_compensation(plans: Mapping[str, LayerPlan], shape: ModelShape) -> list[str]:
    """Print one row per plan (label -> plan) that has a W_c, and nothing where none has one; returns the lines."""
    compensated = {label: plan for label, plan in plans.items() if plan.compensated}
    if not compensated:
        return []
    rows = [_row(label, CompensationCost.of(plan, shape)) for label, plan in compensated.items()]
    notes = [f"{label}: {OPEN_RANKS}" for label, plan in compensated.items() if plan.open_ranks]
    print()
    print_table(TITLE, COLUMNS, rows)
    print("\n".join(notes), end="\n" if notes else "")
    return [*table_text(TITLE, COLUMNS, rows), *notes]


def _row(label: str, cost: CompensationCost) -> tuple[str, ...]:
    parameters = _beside(cost.parameters, cost.saved_parameters)
    return label, *parameters, *_beside(cost.flops, cost.saved_flops)


def _beside(spent: int, saved: int) -> tuple[str, str, str]:
    """A plan with a W_c may keep every projection (a role of one's own may)."""
    return count_text(spent), count_text(saved), f"{spent / saved:.1%}" if saved else "-"
