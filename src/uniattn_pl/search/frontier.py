"""What a search leaves: every plan it went through, as a table, a figure, and files that `given` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.display.figure import new_figure
from uniattn_pl.files import atomic_folder
from uniattn_pl.plan.changes import searched_roles
from uniattn_pl.plan.cost_ratio import COSTS, Cost
from uniattn_pl.search.greedy import FrontierPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONTIER = "frontier"
STYLES = (("#4c72b0", "o"), ("#dd8452", "^"), ("#c44e52", "x"), ("#55a868", "D"), ("#8172b3", "v"))


def is_dominated(point: FrontierPoint, others: Sequence[FrontierPoint]) -> bool:
    """Whether another plan costs no more and loses no more, and one of both less."""
    return any(
        other.cost <= point.cost and other.loss <= point.loss and (other.cost, other.loss) != (point.cost, point.loss)
        for other in others
    )


def write_frontier(folder: Path, points: Sequence[FrontierPoint], cost: Cost) -> Path:
    """Write `frontier/` inside `folder`: table.txt, frontier.json, frontier.png and plans/NN.json; returns it.

    A plan file is what `architecture: {name: given, plan: FILE}` takes.
    """
    target = folder / FRONTIER
    with atomic_folder(target) as temporary:
        (temporary / "plans").mkdir()
        for number, point in enumerate(points):
            text = json.dumps(point.plan, indent=1)
            (temporary / "plans" / f"{number:02d}.json").write_text(text, encoding="utf-8")
        rows = [{**asdict(p), "plan": f"plans/{n:02d}.json"} for n, p in enumerate(points)]
        content = {"cost": asdict(cost), "points": rows}
        (temporary / "frontier.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        (temporary / "table.txt").write_text("\n".join(table(points, cost)) + "\n", encoding="utf-8")
        figure(points, cost).savefig(temporary / "frontier.png", dpi=150, bbox_inches="tight")
    return target


def table(points: Sequence[FrontierPoint], cost: Cost) -> list[str]:
    """One line per plan: its cost, its loss, the change that led to it, and whether another plan beats it."""
    lines = [f"{'plan':>4} {'cost':>7} {'loss':>8}  change   (cost: {COSTS[cost.kind]}, {cost.length} tokens)"]
    for number, point in enumerate(points):
        change = "unmodified" if point.layer is None else f"layer {point.layer}: {point.kind}"
        beaten = "  (another costs and loses no more)" if is_dominated(point, points) else ""
        lines.append(f"{number:>4} {point.cost:>7.1%} {point.loss:>8.4f}  {change}{beaten}")
    return lines


def figure(points: Sequence[FrontierPoint], cost: Cost) -> Figure:
    """Loss against cost, each plan marked by the kind of change that led to it."""
    drawing = new_figure()
    axes = drawing.add_subplot()
    axes.plot([100 * p.cost for p in points], [p.loss for p in points], color="#bbbbbb", linewidth=1, zorder=1)
    marks: dict[str | None, tuple[str, str, str]] = {None: ("k", "s", "unmodified")}
    kinds = dict.fromkeys([*searched_roles(), *(point.kind for point in points if point.kind)])
    marks |= {kind: (*style, kind) for kind, style in zip(kinds, cycle(STYLES), strict=False)}
    for kind, (color, marker, label) in marks.items():
        chosen = [p for p in points if p.kind == kind]
        if chosen:
            axes.scatter([100 * p.cost for p in chosen], [p.loss for p in chosen], c=color, marker=marker, label=label)
    axes.set_xlabel(f"{COSTS[cost.kind]} at {cost.length} tokens (% of the unmodified model)")
    axes.set_ylabel("loss on the search's tokens (nats per token)")
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(title="last change")
    return drawing
