"""One step of a search: what one layer's attention could become, given what the others already are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from uniattn_pl.plan.compensation import Compensation
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.plan_error import PlanError
from uniattn_pl.plan.roles import ROLES
from uniattn_pl.plan.shape import ModelShape


def searched_roles() -> dict[str, str]:
    """Roles that a search can give to a full layer -> what the layer then does."""
    return {name: role.becomes for name, role in ROLES.items() if role.becomes is not None}


@dataclass(frozen=True)
class Change:
    """Layer `layer` gets the role `kind`, one of `searched_roles`."""

    layer: int
    kind: str

    def apply(self, plan: LayerPlan, *, compensated: bool) -> LayerPlan | None:
        """The changed plan, or None where the layer cannot become that.

        Layers that used what this layer no longer gives use what this layer uses: chains are allowed.
        """
        role, source = ROLES[self.kind], self._source(plan)
        if plan.rows[self.layer].operated or (role.reads is not None and source is None):
            return None
        changed = {self.layer: LayerRow(self.layer, self.kind, source, Compensation() if compensated else None)}
        for reader in plan.readers(self.layer):
            if reader.traits.reads in role.gives:
                continue
            if reader.role != self.kind:
                return None
            changed[reader.index] = replace(reader, source=source)
        try:
            return plan.with_rows(changed)
        except PlanError:
            return None

    def _source(self, plan: LayerPlan) -> int | None:
        """The nearest layer below that gives what the role reads."""
        reads = ROLES[self.kind].reads
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
            if changed is not None and _fits(changed, shape):
                plans[change] = changed
    return plans


def _fits(plan: LayerPlan, shape: ModelShape) -> bool:
    try:
        plan.check(shape)
    except PlanError:
        return False
    return True
