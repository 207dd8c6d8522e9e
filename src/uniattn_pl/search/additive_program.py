"""Plans of the least sum of single changes' scores under a cost budget, by mixed integer programming (Puzzle's search).

Every layer takes one option: to stay as it is, or one change with one source. With y_o in {0, 1} for option o:

    minimise sum_o score_o y_o   with   sum_o saved_o y_o >= 1 - budget,   sum over a layer's options y_o = 1

and, of what readers read (a map, keys and values), n_is in [0, 1]: of the layers below i that give it, s is nearest,

    n_(s+1)s = g_s,   n_is - g_i <= n_(i+1)s <= min(n_is, 1 - g_i),   y_o <= n_is   for o of layer i that reads from s

where g_i sums the y_o of layer i that give it. So readers have the sources that `plan.changes.Change` would give them.
(arXiv 2411.19146, section 4; solved by HiGHS in scipy.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.changes import Change, fits_model, role_and_sizes
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.plan.roles import ROLES

ROUNDING = 1e-9


@dataclass(frozen=True)
class Proposal:
    """A plan of the program: its changes, bottom first, and the sum of their scores."""

    changes: tuple[Change, ...]
    plan: LayerPlan
    predicted: float


@dataclass(frozen=True)
class _Option:
    """What one layer may be: `change` (None: as it is), reading from `source`; its score and what it saves."""

    layer: int
    change: Change | None
    source: int | None
    score: float
    saved: float
    reads: str | None
    gives: frozenset[str]


_Row = tuple[dict[int, float], float, float]  # coefficients by variable, lower and upper bound


class AdditiveProgram:
    """Proposes plans for any budget from scores that were measured once.

    Costs are those of the plans, windows of sources included; where the source of a source limits a window, the
    program may count too much and miss a plan, but gives none over the budget.

    Args:
        shape: of the model.
        scores: by change, how much it alone raises the score of the unmodified model; others are not proposed.
        cost: what a budget is of.
        compensated: changed layers get a W_c.
    """

    def __init__(self, shape: ModelShape, scores: Mapping[Change, float], cost: Cost, *, compensated: bool) -> None:
        self.shape, self.scores, self.cost, self.compensated = shape, scores, cost, compensated

    def proposals(self, budget: float, *, distance: int = 1) -> Iterator[Proposal]:
        """Plans that cost `budget` at most, relative to the unmodified model, the least sum of scores first.

        Args:
            budget: above 0.
            distance: layers by which each differs at least from all before it.
        """
        cuts: list[_Row] = []
        while (chosen := self._solve(budget, cuts)) is not None:
            plan = self._built(chosen)
            given = plan is not None and self.cost.ratio(plan, self.shape) <= budget + ROUNDING
            cuts.append(self._differing(chosen, distance if given else 1))
            if plan is not None and given:
                yield Proposal(tuple(chosen), plan, sum(self.scores[change] for change in chosen))

    def _built(self, changes: Sequence[Change]) -> LayerPlan | None:
        """The changes made bottom up; None where this model cannot have that plan."""
        return changed_plan(changes, self.shape, compensated=self.compensated)

    @cached_property
    def _options(self) -> list[_Option]:
        stock = LayerPlan.stock(self.shape).rows
        options = [_Option(row.index, None, None, 0.0, 0.0, None, row.traits.gives) for row in stock]
        for change, score in self.scores.items():
            role = ROLES[role_and_sizes(change.kind)[0]]
            for source in [None] if role.reads is None else range(change.layer):
                saved = self._saved(change, source)
                if saved is not None:
                    options.append(_Option(change.layer, change, source, score, saved, role.reads, role.gives))
        return options

    def _saved(self, change: Change, source: int | None) -> float | None:
        """What a change saves of the unmodified model's cost, reading from `source`; None: it cannot."""
        base = LayerPlan.stock(self.shape)
        if source is not None:
            between = [layer for layer in self.shape.attention_layers if source < layer < change.layer]
            base = base.drop(between, compensated=False)
        plan = change.apply(base, compensated=self.compensated)
        if plan is None or not fits_model(plan, self.shape):
            return None
        return self.cost.ratio(base, self.shape) - self.cost.ratio(plan, self.shape)

    @cached_property
    def _of_layer(self) -> list[list[int]]:
        """The numbers of each layer's options."""
        layers = range(self.shape.num_layers)
        return [[o for o, option in enumerate(self._options) if option.layer == layer] for layer in layers]

    @cached_property
    def _nearest(self) -> dict[tuple[int, str, int], int]:
        """(layer, what is read, source) -> the number of its variable n, behind those of the options."""
        wanted = sorted({option.reads for option in self._options if option.reads is not None})
        keys = [(i, reads, s) for reads in wanted for i in range(1, self.shape.num_layers) for s in range(i)]
        return {key: len(self._options) + number for number, key in enumerate(keys)}

    @cached_property
    def _rules(self) -> list[_Row]:
        """One option per layer; n as above; readers read from the nearest giver."""
        rows: list[_Row] = []
        rows += [(dict.fromkeys(options, 1.0), 1.0, 1.0) for options in self._of_layer]
        for (layer, reads, source), n in self._nearest.items():
            given = dict.fromkeys(self._givers(layer - 1, reads), -1.0)
            if source == layer - 1:
                rows.append(({n: 1.0, **given}, 0.0, 0.0))
                continue
            before = self._nearest[layer - 1, reads, source]
            rows.append(({n: 1.0, before: -1.0}, -np.inf, 0.0))
            rows.append(({n: -1.0, **given}, -1.0, np.inf))
            rows.append(({n: 1.0, before: -1.0, **dict.fromkeys(given, 1.0)}, 0.0, np.inf))
        for o, option in enumerate(self._options):
            if option.reads is not None and option.source is not None:
                rows.append(({o: 1.0, self._nearest[option.layer, option.reads, option.source]: -1.0}, -np.inf, 0.0))
        return rows

    def _givers(self, layer: int, reads: str) -> list[int]:
        """The options of a layer that give what is read."""
        return [o for o in self._of_layer[layer] if reads in self._options[o].gives]

    def _differing(self, changes: Sequence[Change], distance: int) -> _Row:
        """At most all but `distance` layers are what they are under `changes`."""
        chosen = {change.layer: change for change in changes}
        same = {o: 1.0 for o, option in enumerate(self._options) if option.change == chosen.get(option.layer)}
        return same, -np.inf, float(self.shape.num_layers - distance)

    def _solve(self, budget: float, cuts: Sequence[_Row]) -> list[Change] | None:
        """The changes of an optimum, bottom first; None: there is no solution."""
        saving = {o: option.saved for o, option in enumerate(self._options) if option.saved}
        rows = [*self._rules, (saving, 1.0 - budget - ROUNDING, np.inf), *cuts]
        size, binary = len(self._options) + len(self._nearest), len(self._options)
        entries = [(number, variable, value) for number, row in enumerate(rows) for variable, value in row[0].items()]
        places, variables, values = (np.array(column) for column in zip(*entries, strict=True))
        matrix = csr_array((values, (places, variables)), shape=(len(rows), size))
        result = milp(
            np.array([option.score for option in self._options] + [0.0] * (size - binary)),
            integrality=np.array([1] * binary + [0] * (size - binary)),
            bounds=Bounds(0.0, 1.0),
            constraints=LinearConstraint(matrix, [row[1] for row in rows], [row[2] for row in rows]),
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        taken = (option.change for o, option in enumerate(self._options) if result.x[o] > 0.5)
        return sorted((change for change in taken if change is not None), key=lambda change: change.layer)


def changed_plan(changes: Sequence[Change], shape: ModelShape, *, compensated: bool) -> LayerPlan | None:
    """The unmodified plan with these changes, made bottom up; None where the model cannot have that plan."""
    plan: LayerPlan | None = LayerPlan.stock(shape)
    for change in sorted(changes, key=lambda change: change.layer):
        plan = change.apply(plan, compensated=compensated) if plan is not None else None
    return plan if plan is not None and fits_model(plan, shape) else None
