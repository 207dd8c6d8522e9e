"""A searched plan: what each layer becomes, by measured `score` and cost saved."""

from __future__ import annotations

import math
from dataclasses import dataclass

from uniattn_pl.architectures.measurement_protocol import (
    BOTH,
    GREEDY,
    LOSS,
    PROPOSALS,
    SCORES,
    Measurements,
    Proposals,
)
from uniattn_pl.architectures.registry import Architecture, register
from uniattn_pl.options import option
from uniattn_pl.plan import LayerPlan, ModelShape, PlanError
from uniattn_pl.plan.changes import Change, possible_changes, role_and_sizes, searched_roles, sized_kinds
from uniattn_pl.plan.cost_ratio import COSTS, Cost

KINDS = list(searched_roles())
SIZED = "; ".join(f"{kind}, {meaning}" for kind, meaning in sized_kinds().items())


@register
@dataclass
class Search(Architecture):
    """Mixed plans chosen by measurement when a fit starts; the whole frontier is written beside the run.

    Cost: about `candidates` partial forwards of `search_tokens` tokens per changed layer.
    """

    name = "search"
    summary = "chooses per layer what it becomes, by measured loss or KL, until a cost budget is met"

    budget: float = option(0.8, "stop at this fraction of the unmodified model's cost", minimum=0.0)
    cost: str = option("kv_bytes", "what is saved", allowed=tuple(COSTS))
    cost_length: int = option(512, "tokens at which the cost is counted", minimum=1)
    kinds: list[str] = option(KINDS, f"what a layer may become: {', '.join(KINDS)}, {SIZED}")
    candidates: int = option(16, "changes measured per round, the most promising ones; 0: all", minimum=0)
    score: str = option(LOSS, f"what plans are judged by: {'; '.join(SCORES.values())}", allowed=tuple(SCORES))
    proposals: str = option(GREEDY, "where plans come from: " + "; ".join(PROPOSALS.values()), allowed=tuple(PROPOSALS))
    pool: int = option(
        8, "plans of the program that are judged; 0: its optimum is taken unjudged (Puzzle's search)", minimum=0
    )
    swaps: int = option(
        0, "how often at most the best plan's costliest change is undone and greedy goes on from there", minimum=0
    )
    distilled: int = option(0, "of the best plans so many are judged once more after a short distillation", minimum=0)
    distill_steps: int = option(30, "steps of that distillation, one training row each", minimum=1)
    search_tokens: int = option(2000, "training tokens to measure on", minimum=16)
    compensation: bool = option(True, "give every changed layer a W_c, fitted as it is chosen")

    @property
    def measured(self) -> bool:
        return True

    def compile(self, shape: ModelShape) -> LayerPlan:
        raise PlanError("search chooses the layers by measurement, when a fit starts.")

    def check(self, shape: ModelShape) -> None:
        if not self.kinds:
            raise PlanError(f"kinds must be some of {', '.join([*KINDS, *sized_kinds()])}; got {self.kinds}.")
        for kind in self.kinds:
            role_and_sizes(kind)
        if self.proposals == GREEDY and (self.swaps or self.distilled):
            raise PlanError("swaps and distilled judge the plans of a pool; set proposals to mip or both.")
        if not self.pool and (self.proposals == BOTH or self.swaps or self.distilled):
            raise PlanError("pool is 0, so that nothing is judged: set proposals to mip, swaps and distilled to 0.")
        if not 0 < self.budget < 1:
            raise PlanError(f"budget is relative to the unmodified model's cost, between 0 and 1; got {self.budget:g}.")
        cost = Cost(self.cost, self.cost_length)
        least = min(cost.ratio(self._everywhere(kind, shape), shape) for kind in self.kinds)
        if least > self.budget:
            raise PlanError(
                f"budget is {self.budget:g}, but {COSTS[self.cost]} at {self.cost_length} tokens cannot fall below "
                f"{least:.1%} with kinds {', '.join(self.kinds)}; the nearest budget is {math.ceil(least * 100) / 100}."
            )

    def _everywhere(self, kind: str, shape: ModelShape) -> LayerPlan:
        """Every layer that can become `kind` has become it."""
        plan = LayerPlan.stock(shape)
        for layer in range(shape.num_layers):
            changes = possible_changes(plan, shape, [kind], compensated=self.compensation)
            plan = changes.get(Change(layer, kind), plan)
        return plan

    def choose(self, shape: ModelShape, measurements: Measurements) -> LayerPlan:
        self.check(shape)
        return measurements.greedy(
            kinds=self.kinds,
            cost=self.cost,
            length=self.cost_length,
            budget=self.budget,
            compensated=self.compensation,
            candidates=self.candidates,
            tokens=self.search_tokens,
            score=self.score,
            proposals=None if self.proposals == GREEDY else self._proposals,
        )

    @property
    def _proposals(self) -> Proposals:
        return Proposals(
            by=self.proposals,
            pool=self.pool,
            swaps=self.swaps,
            distilled=self.distilled,
            distill_steps=self.distill_steps,
        )
