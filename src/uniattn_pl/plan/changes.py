"""One step of a search: what one layer's attention could become, given what the others already are."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from uniattn_pl.plan.layer_plan import LayerPlan, LayerRow, ModelShape, PlanError

KINDS = {
    "reuse": "use the attention map of the nearest layer below that computes one",
    "share": "attend over the keys and values of the nearest layer below that has its own (CLA)",
    "drop": "have no attention (LLMDrop)",
}


@dataclass(frozen=True)
class Change:
    """Layer `layer` becomes `kind`, one of `KINDS`."""

    layer: int
    kind: str

    def apply(self, plan: LayerPlan, *, compensated: bool) -> LayerPlan | None:
        """The changed plan, or None where the layer cannot become that.

        Layers that used the map (or keys and values) of this layer now use what this layer uses: chains are allowed.
        """
        row = plan.rows[self.layer]
        if row.operated:
            return None
        source = self._source(plan)
        if self.kind != "drop" and source is None:
            return None
        changed = {self.layer: self._row(source, compensated)}
        for reader in (row for row in plan.rows if row.source == self.layer):
            if reader.role == "reuse" and self.kind == "share":
                continue  # this layer still computes a map of its own
            if reader.role != self.kind:
                return None
            changed[reader.index] = _reading_from(reader, source)
        try:
            return replace(plan, rows=tuple(changed.get(r.index, r) for r in plan.rows))
        except PlanError:
            return None

    def _source(self, plan: LayerPlan) -> int | None:
        if self.kind == "drop":
            return None
        wanted = ("full", "share") if self.kind == "reuse" else ("full",)
        below = [row.index for row in plan.rows[: self.layer] if row.role in wanted]
        return below[-1] if below else None

    def _row(self, source: int | None, compensated: bool) -> LayerRow:
        index = self.layer
        if self.kind == "drop":
            return LayerRow(index, None, None, None, dropped=True, compensated=compensated)
        if self.kind == "reuse":
            return LayerRow(index, source, None, index, compensated=compensated)
        return LayerRow(index, index, source, source, compensated=compensated)


def _reading_from(reader: LayerRow, source: int | None) -> LayerRow:
    if reader.role == "reuse":
        return replace(reader, map_from=source)
    return replace(reader, key_from=source, value_from=source)


def possible_changes(
    plan: LayerPlan, shape: ModelShape, kinds: Iterable[str], *, compensated: bool
) -> dict[Change, LayerPlan]:
    """Every change of one layer that gives a plan this model can have."""
    found: dict[Change, LayerPlan] = {}
    for layer in range(len(plan.rows)):
        for kind in kinds:
            change = Change(layer, kind)
            changed = change.apply(plan, compensated=compensated)
            if changed is not None and _fits(changed, shape):
                found[change] = changed
    return found


def _fits(plan: LayerPlan, shape: ModelShape) -> bool:
    try:
        plan.check(shape)
    except PlanError:
        return False
    return True
