"""One layer of a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uniattn_pl.plan.compensation import Compensation
from uniattn_pl.plan.roles import FULL, KEYS, MAP, OUTPUT, ROLES, VALUE, VALUES, Role
from uniattn_pl.plan.shape import LayerShape

LACKING = {VALUE: "values", OUTPUT: "heads"}


@dataclass(frozen=True)
class LayerRow:
    """What becomes of one layer's attention.

    Attributes:
        index: of the layer, 0-based.
        role: a name of `ROLES`.
        source: the layer it reads from, where its role reads anything.
        compensation: its W_c, or None.
        heads_from: head h [H] uses the map of the source's head `heads_from[h]`; None: of head h.
    """

    index: int
    role: str = FULL
    source: int | None = None
    compensation: Compensation | None = None
    heads_from: tuple[int, ...] | None = None

    @property
    def traits(self) -> Role:
        """What a layer of this role computes, caches, reads and gives."""
        return ROLES[self.role]

    @property
    def operated(self) -> bool:
        """Whether the architecture changed this layer."""
        return self.role != FULL

    @property
    def compensated(self) -> bool:
        return self.compensation is not None

    @property
    def caches_keys(self) -> bool:
        return KEYS in self.traits.caches

    @property
    def caches_values(self) -> bool:
        return VALUES in self.traits.caches

    @property
    def reads_stream(self) -> bool:
        """Whether anything of the attention sublayer is left that reads the residual stream, and so needs its norm."""
        return self.traits.feed_forward and (self.traits.computes or self.compensated)

    def sized(self, layer: LayerShape) -> LayerShape:
        """The shape of the model's layer as this row has it: left out, it has no feed-forward and no norms."""
        if self.traits.feed_forward:
            return layer
        return replace(layer, feed_forward=0, experts=None, attention_norms=0, other=0)

    def problems(self) -> list[str]:
        """What is impossible about this row by itself, in words."""
        where = f"layer {self.index}"
        if self.role not in ROLES:
            return [f"{where} has the role '{self.role}'; roles: {', '.join(ROLES)}."]
        if self.compensation is not None:
            if not self.operated:
                return [f"{where} computes its own attention and cannot carry a compensation."]
            missing = self.compensation.needed_projections - self.traits.projections
            if missing and not self.traits.computes:
                return [f"{where} is dropped: its W_c can only read attention_input and not add to heads."]
            if missing:
                lacking = " or ".join(LACKING[projection] for projection in sorted(missing))
                return [f"{where} has no {lacking} of its own for its W_c to read or add to."]
        if self.source is not None and self.traits.reads is None:
            return [f"{where} ({self.role}) reads from no other layer, but names layer {self.source}."]
        if self.heads_from is not None and self.traits.reads != MAP:
            return [f"{where} reuses no map whose heads could be aligned."]
        return []
