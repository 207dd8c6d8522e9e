"""Plans proposed by a mixed integer program, judged by what they really score, improved greedily, distilled shortly.

The sum of single changes' scores knows nothing of how changes act together (Puzzle's own report has dropped layers
chosen badly by it), so it only proposes; what is measured decides. Every measurement is of one plan and written down.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

from uniattn_pl.architectures.measurement_protocol import BOTH, MIP, Proposals
from uniattn_pl.calibration.layers import Progress
from uniattn_pl.errors import UserError
from uniattn_pl.files import atomic_file
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.changes import Change, possible_changes
from uniattn_pl.search.additive_program import AdditiveProgram, changed_plan
from uniattn_pl.search.greedy import (
    DISTILLED,
    FITTED,
    PREDICTED,
    ROUNDING,
    FrontierPoint,
    GreedySearch,
    SearchSettings,
)
from uniattn_pl.search.unified_streams import UnifiedStreams

DIFFERING_LAYERS = 2  # by which the plans of a pool differ at least
PREDICTED_STEP = 0.05  # between the budgets of a frontier that nothing is measured for
SWAP = "swap"


class ProposalSearch:
    """The best plan of a pool, at one budget; and what the program predicts for every budget above.

    Cost: one fit and forward of the layers above per possible change of the original, as greedy's first round; one fit
    of a whole plan per plan of the pool; a swap as much, and a forward per change undone and per candidate.

    Args:
        streams: the original model on the search's tokens.
        shape: of that model.
        settings: what is asked for.
        proposals: where plans come from, and how they are judged.
        record: the file that keeps every measurement; a search goes on from it, and so does one for another budget.
        progress: called with (measurements made, how many there will be at most, what).

    Raises:
        UserError: the record belongs to other settings.
    """

    def __init__(
        self,
        streams: UnifiedStreams,
        shape: ModelShape,
        settings: SearchSettings,
        proposals: Proposals,
        *,
        record: Path | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.streams, self.shape, self.settings, self.proposals = streams, shape, settings, proposals
        self.record, self.progress = record, progress
        self.original = streams.score
        self.measured: dict[tuple[LayerPlan, int], float] = {}
        self.changes: dict[LayerPlan, tuple[Change, ...]] = {streams.plan: ()}
        self._resume()

    def run(self) -> list[FrontierPoint]:
        """The unmodified model, the predicted and the judged plans, and last the chosen one; without it, none is."""
        alone = self._alone()
        program = AdditiveProgram(self.shape, alone, self.settings.cost, compensated=self.settings.compensated)
        budgets = [number * PREDICTED_STEP for number in range(int(1 / PREDICTED_STEP), 0, -1)]
        points = [self._point(LayerPlan.stock(self.shape), self.original)]
        for budget in [*(b for b in budgets if self.settings.budget + ROUNDING < b < 1), self.settings.budget]:
            for proposal in islice(program.proposals(budget), 1):
                points.append(self._point(proposal.plan, self.original + proposal.predicted, basis=PREDICTED))
        if not self.proposals.pool:
            return points
        judged = []
        for proposal in islice(program.proposals(self.settings.budget, distance=DIFFERING_LAYERS), self.proposals.pool):
            self.changes[proposal.plan] = proposal.changes
            judged.append(self._point(proposal.plan, self._measure(proposal.plan, "a plan of the pool")))
        if self.proposals.by == BOTH:
            judged += self._greedy(alone, "greedy")
        for number in range(self.proposals.swaps if judged else 0):
            improved = self._swapped(min(_within(judged, self.settings.budget), key=_score), alone, number)
            if improved is None:
                break
            judged.append(improved)
        finalists = sorted(_within(judged, self.settings.budget), key=_score)
        others = [point for point in judged if point not in finalists]
        points += [*others, *reversed(finalists)]
        distilled = [self._distilled(point) for point in finalists[: self.proposals.distilled]]
        return points + sorted(distilled, key=_score, reverse=True)

    def _alone(self) -> dict[Change, float]:
        """By change, how much it alone raises the original's score."""
        compensated = self.settings.compensated
        unmodified = LayerPlan.stock(self.shape)
        changes = possible_changes(unmodified, self.shape, self.settings.kinds, compensated=compensated)
        expected = len(changes) + self.proposals.pool + self.proposals.distilled
        return {
            change: self._measure(plan, f"layer {change.layer} {change.kind}", expected) - self.original
            for change, plan in changes.items()
        }

    def _measure(self, plan: LayerPlan, what: str, expected: int = 0, *, distil_steps: int = 0) -> float:
        """The score of a plan, of the record where it has it."""
        key = plan, distil_steps
        if key not in self.measured:
            self.measured[key] = self.streams.judge(plan, distil_steps=distil_steps)
            self._save()
        if self.progress is not None:
            done = len(self.measured)
            self.progress(done, max(expected, done + (not expected)), what)
        return self.measured[key]

    def _greedy(self, alone: dict[Change, float], name: str) -> list[FrontierPoint]:
        """What greedy goes through from the present plan to the budget, without where it starts."""
        plan = self.streams.plan
        record = None if self.record is None else self.record.with_name(f"{self.record.stem}-{name}.json")
        search = GreedySearch(
            self.streams, self.shape, self.settings, known=alone, found_by=name, record=record, progress=self.progress
        )
        points, changes = search.run()[1:], self.changes[plan]
        for point in points:
            assert point.layer is not None
            assert point.kind is not None
            changes = (*changes, Change(point.layer, point.kind))
            self.changes[LayerPlan.from_dict(point.plan)] = changes
        return points

    def _swapped(self, best: FrontierPoint, alone: dict[Change, float], number: int) -> FrontierPoint | None:
        """The best plan with its costliest change undone and others made in its place; None: that is no better."""
        plan = LayerPlan.from_dict(best.plan)
        self._accept(plan)
        shorter: dict[LayerPlan, float] = {}
        for change in self.changes[plan]:
            others = tuple(other for other in self.changes[plan] if other != change)
            without = changed_plan(others, self.shape, compensated=self.settings.compensated)
            if without is not None:
                self.changes[without] = others
                shorter[without] = self._price(best, without, change)
        if not shorter:
            return None
        self._accept(max(shorter, key=lambda without: shorter[without]))
        found = self._greedy(alone, f"{SWAP}-{number}")
        if not found or found[-1].cost > self.settings.budget + ROUNDING or found[-1].score >= best.score:
            return None
        return replace(found[-1], found_by=SWAP, layer=None, kind=None)

    def _price(self, best: FrontierPoint, without: LayerPlan, change: Change) -> float:
        """Score that undoing a change gains per unit of cost that it gives back."""
        gained = best.score - self._measure(without, f"without layer {change.layer} {change.kind}")
        return gained / max(self.settings.cost.ratio(without, self.shape) - best.cost, ROUNDING)

    def _accept(self, plan: LayerPlan) -> None:
        """Make a plan the present one of the streams."""
        start = self.streams.first_difference(plan)
        if start is not None:
            self.streams.accept(plan, start)

    def _distilled(self, point: FrontierPoint) -> FrontierPoint:
        """The point's plan, judged after a short distillation."""
        steps = self.proposals.distill_steps
        score = self._measure(LayerPlan.from_dict(point.plan), "a finalist, distilled", distil_steps=steps)
        return replace(point, score=score, basis=DISTILLED)

    def _point(self, plan: LayerPlan, score: float, *, basis: str = FITTED) -> FrontierPoint:
        cost = self.settings.cost.ratio(plan, self.shape)
        return FrontierPoint(cost, score, plan.to_dict(), found_by=MIP, basis=basis)

    def _save(self) -> None:
        if self.record is None:
            return
        rows = [{"plan": plan.to_dict(), "distilled": s, "score": v} for (plan, s), v in self.measured.items()]
        with atomic_file(self.record) as file:
            file.write(json.dumps({"settings": self._identity(), "measured": rows}, indent=1).encode())

    def _resume(self) -> None:
        """Keep the recorded measurements."""
        if self.record is None or not self.record.exists():
            return
        state = json.loads(self.record.read_text(encoding="utf-8"))
        if state["settings"] != json.loads(json.dumps(self._identity())):
            raise UserError(f"{self.record} belongs to a search with other settings; delete it to start a new one.")
        for row in state["measured"]:
            self.measured[LayerPlan.from_dict(row["plan"]), row["distilled"]] = row["score"]

    def _identity(self) -> dict[str, object]:
        """What a measurement depends on: neither the budget nor the pool."""
        settings = asdict(self.settings)
        return {name: settings[name] for name in ("compensated", "score")}


def _score(point: FrontierPoint) -> float:
    return point.score


def _within(points: list[FrontierPoint], budget: float) -> list[FrontierPoint]:
    return [point for point in points if point.cost <= budget + ROUNDING]
