"""Greedy search over plans: again and again the change that costs least score per unit of inference cost it saves.

Each change is fitted (its W_c, and W_o with it) before it is measured, and every evaluation is written down, so a
killed search goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uniattn_pl.architectures.measurement_protocol import GREEDY, LOSS
from uniattn_pl.calibration.layers import Progress
from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_file
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.changes import Change, possible_changes
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.plan.saved_form import current_role
from uniattn_pl.search.unified_streams import UnifiedStreams

ROUNDING = 1e-9
FITTED, PREDICTED, DISTILLED = "fitted", "predicted", "distilled"
BASES = {
    FITTED: "measured, its layers fitted",
    PREDICTED: "the sum of its changes' scores, each alone",
    DISTILLED: "measured after a short distillation",
}


@dataclass(frozen=True)
class FrontierPoint:
    """A plan the search went through: its cost relative to the unmodified model, and its score on the search's tokens.

    Attributes:
        layer, kind: the change that led to it; None where it did not come about by one.
        found_by: greedy, mip or swap.
        basis: how the score came about, of `BASES`; only scores of one basis compare.
    """

    cost: float
    score: float
    plan: dict[str, Any]
    layer: int | None = None
    kind: str | None = None
    found_by: str = GREEDY
    basis: str = FITTED


@dataclass(frozen=True)
class SearchSettings:
    """What a search is asked for.

    Args:
        kinds: roles that a layer may get, of `changes.searched_roles`.
        cost: what is to be saved.
        budget: stop when the cost, relative to the unmodified model's, is at most this.
        compensated: give every changed layer a W_c and fit it before measuring.
        candidates: changes measured per round, those that looked best when last measured; 0: all, every round.
        score: what a plan is judged by, of `architectures.measurement_protocol.SCORES`.
    """

    kinds: tuple[str, ...]
    cost: Cost
    budget: float
    compensated: bool = True
    candidates: int = 0
    score: str = LOSS

    def identity(self) -> dict[str, Any]:
        """What names a record: without what former versions did not have, where it is as they did it."""
        fields = asdict(self)
        return fields if self.score != LOSS else {name: value for name, value in fields.items() if name != "score"}


class GreedySearch:
    """Again and again the change with the least score per unit of cost saved, until the budget is met.

    price = (score - present score) / (cost saved); of a change that lowers the score, its product with the cost saved.
    Cost: per round about `candidates` fits of one layer and forwards of the layers above it.

    Args:
        streams: the model that the search starts from, on the search's tokens: the original, or one under a plan.
        shape: of that model.
        settings: what is asked for.
        known: increases of the score by single changes, measured before; others are all measured in the first round.
        found_by: what its plans are marked by.
        record: the file that keeps every evaluation; a search with the same settings goes on from it.
        progress: called with (evaluations made, how many there will be about, what) after each of them.

    Raises:
        UserError: the record belongs to other settings.
    """

    def __init__(
        self,
        streams: UnifiedStreams,
        shape: ModelShape,
        settings: SearchSettings,
        *,
        known: Mapping[Change, float] | None = None,
        found_by: str = GREEDY,
        record: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.streams, self.shape, self.settings = streams, shape, settings
        self.found_by, self.record, self.progress = found_by, record, progress
        self.points = [self._point(streams.plan, streams.score)]
        self.increases: dict[Change, float] = dict(known or {})
        self.scores: dict[Change, float] = {}
        self.evaluations = 0
        self._resume()

    def run(self) -> list[FrontierPoint]:
        """Search until the budget is met or nothing more can change; returns the unmodified model and every step."""
        while not self.budget_met:
            changes = possible_changes(
                self.streams.plan, self.shape, self.settings.kinds, compensated=self.settings.compensated
            )
            chosen = self._most_promising(changes)
            if not chosen:
                break
            for number, change in enumerate(chosen):
                if change not in self.scores:
                    self.scores[change] = self.streams.try_plan(changes[change], change.layer)
                    self._save()
                    self.evaluations += 1
                self._report(change, len(chosen) - number - 1, len(chosen))
            best = min(chosen, key=lambda change: self._price(changes[change], self.scores[change]))
            self._take(best, changes[best])
        return self.points

    @property
    def budget_met(self) -> bool:
        """Whether the last plan costs no more than asked for, to within rounding."""
        return self.points[-1].cost <= self.settings.budget + ROUNDING

    def _report(self, change: Change, remaining: int, per_round: int) -> None:
        """Tell how far the whole search is; the rounds to come are judged by what a round has saved so far."""
        if self.progress is None:
            return
        cost, rounds = self.points[-1].cost, len(self.points) - 1
        to_save = cost - self.settings.budget
        to_come = math.ceil(to_save / ((1 - cost) / rounds)) if rounds and cost < 1 else self._rounds_at_first(change)
        total = self.evaluations + remaining + max(to_come - 1, 0) * per_round
        text = f"{rounds} changed, cost {cost:.1%}, layer {change.layer} {change.kind}"
        self.progress(self.evaluations, total, text)

    def _rounds_at_first(self, change: Change) -> int:
        """Rounds, were every one to save what this change does."""
        plan = change.apply(self.streams.plan, compensated=self.settings.compensated)
        saved = self._saved(plan) if plan is not None else 0.0
        return math.ceil((self.points[-1].cost - self.settings.budget) / saved) if saved > 0 else 1

    def _take(self, change: Change, plan: LayerPlan) -> None:
        present = self.points[-1].score
        self.increases |= {other: score - present for other, score in self.scores.items()}
        self.increases.pop(change, None)
        self.scores = {}
        self.points.append(self._point(plan, self.streams.accept(plan, change.layer), change))
        self._save()

    def _most_promising(self, changes: dict[Change, LayerPlan]) -> list[Change]:
        """The changes to measure in this round; those never measured come first."""
        useful = [change for change, plan in changes.items() if self._saved(plan) > 0]
        if not self.settings.candidates:
            return useful
        present = self.points[-1].score

        def expected(change: Change) -> float:
            increase = self.increases.get(change)
            return float("-inf") if increase is None else self._price(changes[change], present + increase)

        unknown = sum(change not in self.increases for change in useful)
        return sorted(useful, key=expected)[: max(self.settings.candidates, unknown)]

    def _saved(self, plan: LayerPlan) -> float:
        return self.points[-1].cost - self.settings.cost.ratio(plan, self.shape)

    def _price(self, plan: LayerPlan, score: float) -> float:
        """Score per unit of cost saved; a change that lowers the score is the better the more it saves."""
        increase, saved = score - self.points[-1].score, self._saved(plan)
        return increase / saved if increase > 0 else increase * saved

    def _point(self, plan: LayerPlan, score: float, change: Change | None = None) -> FrontierPoint:
        layer, kind = (change.layer, change.kind) if change else (None, None)
        cost = self.settings.cost.ratio(plan, self.shape)
        return FrontierPoint(cost, score, plan.to_dict(), layer, kind, found_by=self.found_by)

    def _save(self) -> None:
        if self.record is None:
            return
        state = {
            "settings": asdict(self.settings),
            "points": [asdict(point) for point in self.points],
            "known": _listed(self.increases),
            "round": _listed(self.scores),
        }
        with atomic_file(self.record) as file:
            file.write(json.dumps(state, indent=1).encode())

    def _resume(self) -> None:
        """Take the recorded steps again (one fit each) and keep the recorded evaluations."""
        if self.record is None or not self.record.exists():
            return
        state = _current_form(json.loads(self.record.read_text(encoding="utf-8")))
        if state["settings"] != json.loads(json.dumps(asdict(self.settings))):
            raise UserError(f"{self.record} belongs to a search with other settings; delete it to start a new one.")
        for point in state["points"][1:]:
            plan = LayerPlan.from_dict(point["plan"])
            change = Change(point["layer"], point["kind"])
            self.points.append(self._point(plan, self.streams.accept(plan, change.layer), change))
        self.increases, self.scores = _from_list(state["known"]), _from_list(state["round"])


def _listed(values: dict[Change, float]) -> list[list[Any]]:
    return [[change.layer, change.kind, value] for change, value in values.items()]


def _from_list(rows: Sequence[Sequence[Any]]) -> dict[Change, float]:
    return {Change(layer, kind): value for layer, kind, value in rows}


def _current_form(state: dict[str, Any]) -> dict[str, Any]:
    """A record as this version writes it: former ones have other names of roles, and are of the loss alone."""
    settings = {
        "score": LOSS,
        **state["settings"],
        "kinds": [current_role(kind) for kind in state["settings"]["kinds"]],
    }
    points = [{**point, "kind": point["kind"] and current_role(point["kind"])} for point in state["points"]]
    lists = {
        name: [[layer, current_role(kind), value] for layer, kind, value in state[name]] for name in ("known", "round")
    }
    return {**state, "settings": settings, "points": points, **lists}
