"""One step of a search: what one layer's attention could become, given what the others already are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from uniattn_pl.plan.compensation import Compensation
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.plan_error import PlanError
from uniattn_pl.plan.roles import FIT, KV_HEADS, ROLES, WINDOW
from uniattn_pl.plan.shape import ModelShape


def searched_roles() -> dict[str, str]:
    """Roles that a search can give to a full layer as they are -> what the layer then does."""
    return {name: role.becomes for name, role in ROLES.items() if role.becomes is not None and not role.sizes}


def sized_kinds() -> dict[str, str]:
    """How kinds are written whose roles have sizes -> what a layer then does; others are the role's name alone."""
    return {
        "heads:N": "have N heads of keys and values (GQA)",
        "window:W+S": "attend to the last W tokens and the first S, which may be left out",
    }


def role_and_sizes(kind: str) -> tuple[str, dict[str, Any]]:
    """What a kind of change stands for: a role, and the sizes that its rows have.

    Raises:
        PlanError: no search can give a layer such a role, or its sizes are missing or none.
    """
    if kind in searched_roles():
        return kind, {}
    if heads := re.fullmatch(r"heads:([1-9]\d*)", kind):
        return "heads", {KV_HEADS: int(heads[1])}
    if span := re.fullmatch(r"window:([1-9]\d*)(?:\+(\d+))?", kind):
        return "window", {WINDOW: int(span[1]), "sinks": int(span[2] or 0)}
    raise PlanError(f"kinds must be some of {', '.join([*searched_roles(), *sized_kinds()])}; got ['{kind}'].")


@dataclass(frozen=True)
class Change:
    """Layer `layer` becomes `kind`: one of `searched_roles`, with its sizes where it has any (`heads:1`)."""

    layer: int
    kind: str

    def apply(self, plan: LayerPlan, *, compensated: bool) -> LayerPlan | None:
        """The changed plan, or None where the layer cannot become that.

        Layers that used what this layer no longer gives use what this layer uses: chains are allowed.
        """
        name, sizes = role_and_sizes(self.kind)
        role, source = ROLES[name], self._source(plan, ROLES[name].reads)
        if plan.rows[self.layer].operated or (role.reads is not None and source is None):
            return None
        w_c = Compensation() if compensated else None
        if KV_HEADS in sizes and compensated:
            sizes["merge"] = FIT
        changed = {self.layer: LayerRow(self.layer, name, source, w_c, **sizes)}
        for reader in plan.readers(self.layer):
            if reader.traits.reads in role.gives:
                continue
            if reader.role != name:
                return None
            changed[reader.index] = replace(reader, source=source)
        try:
            return plan.with_rows(changed)
        except PlanError:
            return None

    def _source(self, plan: LayerPlan, reads: str | None) -> int | None:
        """The nearest layer below that gives what the role reads."""
        givers = [row.index for row in plan.rows[: self.layer] if reads in row.traits.gives]
        return givers[-1] if givers else None


def possible_changes(
    plan: LayerPlan, shape: ModelShape, kinds: Iterable[str], *, compensated: bool
) -> dict[Change, LayerPlan]:
    """Every change of one layer that gives a plan this model can have."""
    plans: dict[Change, LayerPlan] = {}
    for layer in range(len(plan.rows)):
        for kind in kinds:
            change = Change(layer, kind)
            changed = change.apply(plan, compensated=compensated)
            if changed is not None and fits_model(changed, shape):
                plans[change] = changed
    return plans


def fits_model(plan: LayerPlan, shape: ModelShape) -> bool:
    """Whether a model of this shape can have the plan."""
    try:
        plan.check(shape)
    except PlanError:
        return False
    return True
