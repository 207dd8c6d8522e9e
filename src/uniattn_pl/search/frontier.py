"""What a search leaves: every plan it went through, as a table, a figure, and files that `given` takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.architectures.measurement_protocol import GREEDY, LOSS, SCORES
from uniattn_pl.display.figure_style import (
    MARKERS,
    PALETTE,
    draw_front,
    images,
    new_axes,
    new_figure,
    set_legend,
    set_title,
)
from uniattn_pl.display.figure_words import words
from uniattn_pl.files import atomic_folder
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.cost_ratio import COSTS, Cost
from uniattn_pl.plan.mechanism import mechanism_of
from uniattn_pl.plan.roles import UNMODIFIED
from uniattn_pl.search.greedy import BASES, FITTED, FrontierPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRONTIER = "frontier"


def is_dominated(point: FrontierPoint, others: Sequence[FrontierPoint]) -> bool:
    """Whether another plan of the same basis costs no more and scores no worse, and one of both less."""
    present = point.cost, point.score
    return any(
        other.cost <= point.cost and other.score <= point.score and (other.cost, other.score) != present
        for other in others
        if other.basis == point.basis
    )


def write_frontier(folder: Path, points: Sequence[FrontierPoint], cost: Cost, score: str = LOSS) -> Path:
    """Write `frontier/` inside `folder`: table.txt, frontier.json and .png and .svg, and plans/NN.json; returns it.

    A plan file is what `architecture: {name: given, plan: FILE}` takes.

    Args:
        score: what the plans were judged by, of `architectures.measurement_protocol.SCORES`.
    """
    target = folder / FRONTIER
    with atomic_folder(target) as temporary:
        (temporary / "plans").mkdir()
        for number, point in enumerate(points):
            text = json.dumps(point.plan, indent=1)
            (temporary / "plans" / f"{number:02d}.json").write_text(text, encoding="utf-8")
        rows = [{**asdict(p), "plan": f"plans/{n:02d}.json"} for n, p in enumerate(points)]
        content = {"cost": asdict(cost), "score": score, "points": rows}
        (temporary / "frontier.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
        (temporary / "table.txt").write_text("\n".join(table(points, cost, score)) + "\n", encoding="utf-8")
        for image_name, image in images(figure(points, cost, score), FRONTIER).items():
            (temporary / image_name).write_bytes(image)
    return target


def table(points: Sequence[FrontierPoint], cost: Cost, score: str = LOSS) -> list[str]:
    """One line per plan: its cost, its score, what led to it, and whether another plan beats it."""
    lines = [
        f"{'plan':>4} {'cost':>7} {score:>8}  change   (cost: {COSTS[cost.kind]}, {cost.length} tokens; "
        f"{score}: {SCORES[score]})"
    ]
    for number, point in enumerate(points):
        beaten = "  (another costs no more and scores no worse)" if is_dominated(point, points) else ""
        lines.append(f"{number:>4} {point.cost:>7.1%} {point.score:>8.4f}  {_origin(point)}{beaten}")
    return lines


def _origin(point: FrontierPoint) -> str:
    """What led to a plan, and how its score came about where that is no measurement of the fitted plan."""
    if not point.plan.get("rows"):
        return "unmodified"
    by = "" if point.found_by == GREEDY else f"{point.found_by}, "
    led = f"{by}layer {point.layer}: {point.kind}" if point.layer is not None else point.found_by
    return led if point.basis == FITTED else f"{led}; {BASES[point.basis]}"


def figure(points: Sequence[FrontierPoint], cost: Cost, score: str = LOSS) -> Figure:
    """Score against cost, each plan coloured by what it saves by, marked by what found it; none beats those joined."""
    drawing = new_figure()
    axes = new_axes(drawing)
    measured = [(100 * p.cost, p.score) for p in points if p.basis == FITTED]
    draw_front(axes, measured)
    labels = dict.fromkeys(map(_label, points))
    markers = dict(zip(dict.fromkeys(by for _, by in labels), cycle(MARKERS), strict=False))
    for mechanism, by in labels:
        chosen = [p for p in points if _label(p) == (mechanism, by)]
        color, marker = PALETTE[mechanism], markers[by]
        label = mechanism if mechanism == by else f"{mechanism}, {by}"
        axes.scatter([100 * p.cost for p in chosen], [p.score for p in chosen], c=color, marker=marker, label=label)
    # one token: a cost that is the same at every length
    at = "" if cost.length == 1 else f" at {cost.length:,} tokens"
    axes.set_xlabel(f"{COSTS[cost.kind]}{at}\n(% of the unmodified model)")
    axes.set_ylabel(f"{SCORES[score]}")
    set_title(axes, "The plans that the search went through", "scores on the search's tokens")
    axes.invert_xaxis()
    set_legend(drawing, axes)
    return drawing


def _label(point: FrontierPoint) -> tuple[str, str]:
    """What a plan saves by, and what found it."""
    if not point.plan.get("rows"):
        return UNMODIFIED, UNMODIFIED
    by = words(point.found_by)
    return mechanism_of(LayerPlan.from_dict(point.plan)), by if point.basis == FITTED else f"{by}, {point.basis}"
