"""The description of a finished fit on its MLflow page: its table, its plan, and the lines that load its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.drawing import draw
from uniattn_pl.tracking.final_table import QUALITIES
from uniattn_pl.tracking.fit_result import FitResult
from uniattn_pl.tracking.notes import loading_code, results_note


def finished_note(about: str, result: FitResult, plan: Mapping[str, Any] | None) -> str:
    """Describe a finished fit.

    Args:
        about: what it is, with links.
        result: its measurements.
        plan: saved form of its plan.
    """
    cache = result.cache
    lines = [
        f"KV cache of {cache.length:,} tokens: {cache.measured:,} bytes measured, {cache.unmodified:,} unmodified "
        f"({cache.retain_rate:.1%}).",
        *(f"{stage.name}: {stage.steps} steps; it {stage.kept_words}." for stage in result.stages),
    ]
    drawn = "" if plan is None else draw(LayerPlan.from_dict(plan))
    return results_note(about, quality_rows(result), lines, drawn, loading_code(str(result.model_folder), "auto"))


def quality_rows(result: FitResult) -> list[list[str]]:
    """Held-out quality by milestone, headings first."""
    shown = [one for one in QUALITIES if any(getattr(m, one[0]) is not None for m in result.milestones)]
    rows = [["model", "held-out loss", *(title for _, title, _ in shown)]]
    for milestone in result.milestones:
        values = [(getattr(milestone, name), form) for name, _, form in shown]
        cells = ["-" if value is None else format(value, form) for value, form in values]
        rows.append([milestone.label, f"{milestone.response_loss:.4f}", *cells])
    return rows
