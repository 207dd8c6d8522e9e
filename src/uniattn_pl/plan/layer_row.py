"""One layer of a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from uniattn_pl.plan.compensation import Compensation
from uniattn_pl.plan.roles import (
    FIT,
    FULL,
    HEAD_MERGES,
    KEYS,
    KV_HEADS,
    MAP,
    MEAN,
    OUTPUT,
    ROLES,
    VALUE,
    VALUES,
    WINDOW,
    Role,
)
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
        kv_heads: heads of keys and values, of a layer that has fewer than its model's.
        merge: how these come to be: `mean` of neighbouring ones; `fit`: the mean until W_c is fitted, when they become
            those that lose least on the tokens of the calibration (`calibration/fitted_heads.py`).
        window: last tokens that the layer sees, the present one among them; None: as many as its model's.
        sinks: first tokens of each text that it sees beside its window.
        cross_map: it uses the map of its source's cross-attention, too, of a decoder beside an encoder.
    """

    index: int
    role: str = FULL
    source: int | None = None
    compensation: Compensation | None = None
    heads_from: tuple[int, ...] | None = None
    kv_heads: int | None = None
    window: int | None = None
    sinks: int = 0
    merge: str = MEAN
    cross_map: bool = False

    @property
    def traits(self) -> Role:
        """What a layer of this role computes, caches, reads and gives."""
        return ROLES[self.role]

    @property
    def operated(self) -> bool:
        """Whether the architecture changed this layer."""
        return not self.traits.stock

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
        """The shape of the model's layer as this row has it: with fewer KV heads, with its window, without what makes
        the map of its cross-attention, or left out."""
        if self.kv_heads is not None:
            layer = layer.with_kv_heads(self.kv_heads)
        if self.window is not None:
            layer = replace(layer, window=self.window + self.sinks)
        if self.cross_map:
            layer = layer.without_cross_map()
        if self.traits.feed_forward:
            return layer
        return replace(
            layer, feed_forward=0, experts=None, attention_norms=0, other=0, state=0, wide_state=0, cross=None
        )

    def problems(self) -> list[str]:
        """What is impossible about this row by itself, in words."""
        where = f"layer {self.index}"
        if self.role not in ROLES:
            return [f"{where} has the role '{self.role}'; roles: {', '.join(ROLES)}."]
        if self.compensation is not None:
            if not self.operated:
                return [f"{where} computes its own attention and cannot carry a compensation."]
            if self.traits.complete and self.compensation.needed_projections:
                return [
                    f"{where} ({self.role}) keeps its own attention, inside which its W_c can neither read nor add."
                ]
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
        if self.cross_map and self.traits.reads != MAP:
            return [
                f"{where} ({self.role}) reads no map of another layer; only one that does can use the map of its "
                "source's cross-attention, too."
            ]
        return self._size_problems(where)

    def _size_problems(self, where: str) -> list[str]:
        """What is impossible about the sizes that are this row's own."""
        own, problems = {KV_HEADS: self.kv_heads, WINDOW: self.window}, []
        for name, value in own.items():
            if value is None and name in self.traits.sizes:
                problems.append(f"{where} ({self.role}) needs {name}.")
            elif value is not None and name not in self.traits.sizes:
                problems.append(f"{where} ({self.role}) has no {name} of its own, but is given {value}.")
            elif value is not None and value < 1:
                problems.append(f"{where} has {name} {value}; it is at least 1.")
        if self.sinks < 0 or (self.sinks and self.window is None):
            problems.append(f"{where} has {self.sinks} sinks; a window has none or more, another layer none.")
        if self.merge not in HEAD_MERGES:
            problems.append(f"{where} merges heads by '{self.merge}'; allowed: {', '.join(HEAD_MERGES)}.")
        elif self.merge == FIT and (self.kv_heads is None or not self.compensated):
            problems.append(f"{where} fits merged heads with a W_c, of which it lacks one or the other.")
        return problems
