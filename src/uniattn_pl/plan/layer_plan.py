"""The LayerPlan: for every layer, where its attention map, keys and values come from.

Architectures compile to a plan; modeling, caches, costs and drawings only read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from uniattn_pl.errors import UserError, did_you_mean

ROLES = {
    "full": "computes its own attention map from its own keys",
    "reuse": "uses the attention map of the layer below it with its own values (UniAttn)",
    "share": "computes its own map over keys and values of a layer below (CLA)",
    "drop": "has no attention (LLMDrop)",
}

# How reuse layers get the map: keep it, or keep what it is computed from; auto decides per forward.
REUSE_MODES = ("auto", "materialise", "replay")

# Where W_c reads and where its output is added (paper Table 8, Appendix B).
COMPENSATION_INPUTS = {
    "attention_input": "x [d], what enters the attention: the output of the norm before it (rows 1 to 3 of Table 8)",
    "value": "V [Hkv * D], the layer's own values",
    "heads": "the heads' output [H * D], before W_o",
}
COMPENSATION_OUTPUTS = {
    "attention_output": "the attention's output [d], after W_o (row 1: the paper's choice)",
    "layer_output": "the layer's output [d], after the feed-forward (row 2, coarser)",
    "heads": "the heads' output [H * D], before W_o (rows 3 and 4, finer)",
}


class PlanError(UserError):
    """The plan cannot be built on this model; names every offending layer."""


@dataclass(frozen=True)
class LayerShape:
    """Parameter counts of one decoder layer, split by what a plan can remove, and its window in tokens."""

    query: int
    key: int
    value: int
    output: int
    query_norm: int = 0
    key_norm: int = 0
    attention_norms: int = 0
    feed_forward: int = 0
    other: int = 0
    window: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """What plans and costs need to know of a model: sizes (hidden `d`, heads `H`, `Hkv`, head `D`), no weights."""

    model_type: str
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    embedding: int
    layers: tuple[LayerShape, ...]

    @property
    def num_layers(self) -> int:
        return len(self.layers)


@dataclass(frozen=True)
class LayerRow:
    """One layer of a plan; `*_from` hold layer indices, or None where the layer has no such thing.

    A compensated layer's W_c reads `compensation_input` and adds to `compensation_output` (paper Table 8), in full
    or with `compensation_rank`. Head h of a reuse layer uses the map of the source's head `heads_from[h]`, or h.
    """

    index: int
    map_from: int | None
    key_from: int | None
    value_from: int | None
    dropped: bool = False
    compensated: bool = False
    compensation_input: str = "attention_input"
    compensation_output: str = "attention_output"
    compensation_rank: int | None = None
    heads_from: tuple[int, ...] | None = None

    @property
    def role(self) -> str:
        """One of `ROLES`."""
        if self.dropped:
            return "drop"
        if self.map_from != self.index:
            return "reuse"
        return "full" if self.key_from == self.index else "share"

    @property
    def operated(self) -> bool:
        """Whether the architecture changed this layer."""
        return self.role != "full"

    @property
    def source(self) -> int | None:
        """The layer this one reads from, if any."""
        return {"reuse": self.map_from, "share": self.key_from}.get(self.role)

    @property
    def caches_keys(self) -> bool:
        return self.key_from == self.index

    @property
    def caches_values(self) -> bool:
        return self.value_from == self.index


@dataclass(frozen=True)
class LayerPlan:
    """An immutable row per layer; `reuse_map`, `share_keys_values` and `drop` return changed copies.

    Raises:
        PlanError: a row reads from above itself, from a dropped layer, or from one that has nothing to give.
    """

    rows: tuple[LayerRow, ...]

    def __post_init__(self) -> None:
        problems = [p for position, row in enumerate(self.rows) for p in _row_problems(self.rows, position, row)]
        if problems:
            raise PlanError(*problems)

    @classmethod
    def unmodified(cls, num_layers: int) -> LayerPlan:
        """Every layer as in the pre-trained model."""
        return cls(tuple(LayerRow(i, map_from=i, key_from=i, value_from=i) for i in range(num_layers)))

    def reuse_map(self, layers: Iterable[int], source: int, *, compensated: bool) -> LayerPlan:
        """Let `layers` use the attention map of `source`, or of the layer `source` itself reuses (a chain)."""
        self._check_indices([*layers, source])
        root = self.rows[source].map_from
        changed = {i: LayerRow(i, root, None, i, compensated=compensated) for i in layers}
        return self._with(changed)

    def share_keys_values(self, layers: Iterable[int], source: int, *, compensated: bool) -> LayerPlan:
        """Let `layers` attend over the keys and values of `source` with their own queries."""
        self._check_indices([*layers, source])
        changed = {i: LayerRow(i, i, source, source, compensated=compensated) for i in layers}
        return self._with(changed)

    def drop(self, layers: Iterable[int], *, compensated: bool) -> LayerPlan:
        """Remove the attention of `layers`; a W_c that stays is left where it is."""
        self._check_indices(layers)
        dropped = {i: LayerRow(i, None, None, None, dropped=True, compensated=compensated) for i in layers}
        for index, row in dropped.items():
            former = self.rows[index]
            if compensated and former.compensated:
                dropped[index] = replace(
                    row,
                    compensation_input=former.compensation_input,
                    compensation_output=former.compensation_output,
                    compensation_rank=former.compensation_rank,
                )
        return self._with(dropped)

    def place_compensation(self, *, input: str, output: str) -> LayerPlan:
        """Let every W_c of the plan read and add elsewhere: one of `COMPENSATION_INPUTS` and `_OUTPUTS`."""
        compensated = [row for row in self.rows if row.compensated]
        return self._with(
            {row.index: replace(row, compensation_input=input, compensation_output=output) for row in compensated}
        )

    def limit_rank(self, rank: int | None) -> LayerPlan:
        """Let every W_c of the plan have this rank; None: leave each as it is."""
        if rank is None:
            return self
        compensated = [row for row in self.rows if row.compensated]
        return self._with({row.index: replace(row, compensation_rank=rank) for row in compensated})

    def align_heads(self, heads_from: Mapping[int, Sequence[int]]) -> LayerPlan:
        """Let the heads of reuse layers use other heads of their source: layer -> source head per head."""
        return self._with({i: replace(self.rows[i], heads_from=tuple(heads)) for i, heads in heads_from.items()})

    def drop_reuse(self, layers: Iterable[int], *, compensated: bool) -> LayerPlan:
        """Remove the attention of reuse layers as well (UniAttn + LLMDrop, paper Figure 5).

        Raises:
            PlanError: one of `layers` does not reuse a map.
        """
        self._check_indices(layers)
        others = [i for i in layers if i not in self.reusing]
        if others:
            known = _list(self.reusing) or "none"
            raise PlanError(f"layer {_list(others)} reuses no attention map; reuse layers: {known}.")
        return self.drop(layers, compensated=compensated)

    def reduces(self, former: LayerPlan) -> list[str]:
        """Why a model built on `former` cannot go on to this plan: what a layer gave up does not come back."""
        if len(self.rows) != len(former.rows):
            return [f"the plan has {len(self.rows)} layers, the model {len(former.rows)}."]
        return [
            f"layer {new.index} is '{old.role}' already and cannot become '{new.role}'; start from the stock model."
            for old, new in zip(former.rows, self.rows, strict=True)
            if old.operated and new != old and not (new.dropped and _keeps_compensation(old, new))
        ]

    def _with(self, changed: Mapping[int, LayerRow]) -> LayerPlan:
        return replace(self, rows=tuple(changed.get(row.index, row) for row in self.rows))

    def _check_indices(self, layers: Iterable[int]) -> None:
        outside = sorted({i for i in layers if not 0 <= i < len(self.rows)})
        if outside:
            raise PlanError(f"the model has layers 0 to {len(self.rows) - 1}; there is no layer {_list(outside)}.")

    @property
    def operated(self) -> tuple[int, ...]:
        """Layers the architecture changed."""
        return tuple(row.index for row in self.rows if row.operated)

    @property
    def compensated(self) -> tuple[int, ...]:
        """Layers that carry a W_c."""
        return tuple(row.index for row in self.rows if row.compensated)

    @property
    def reusing(self) -> tuple[int, ...]:
        """Layers that use another's attention map."""
        return tuple(row.index for row in self.rows if row.role == "reuse")

    @property
    def map_sources(self) -> frozenset[int]:
        """Layers whose attention map others use."""
        return frozenset(row.source for row in self.rows if row.role == "reuse" and row.source is not None)

    @property
    def key_value_sources(self) -> frozenset[int]:
        """Layers whose keys and values others read."""
        return frozenset(row.source for row in self.rows if row.role == "share" and row.source is not None)

    def last_reader(self, index: int) -> int:
        """The uppermost layer that uses the attention map of layer `index`: itself, when none does."""
        return max((row.index for row in self.rows if row.role == "reuse" and row.source == index), default=index)

    def check(self, shape: ModelShape) -> None:
        """Raise PlanError unless the plan fits: same depth, and no reader that sees further than its source."""
        if len(self.rows) != shape.num_layers:
            raise PlanError(f"the plan has {len(self.rows)} layers, the model ({shape.model_type}) {shape.num_layers}.")
        problems = _rank_problems(self.rows, shape)
        if self.rows and all(row.dropped for row in self.rows):
            problems.append("every layer drops its attention; a model needs at least one that keeps it.")
        for row in self.rows:
            problems += _head_problems(row, shape)
            if row.source is None:
                continue
            own, source = shape.layers[row.index].window, self.window(row.index, shape)
            if source is not None and (own is None or own > source):
                sees = "every token" if own is None else f"the last {own} tokens"
                problems.append(
                    f"layer {row.index} sees {sees} but its source, layer {row.source}, only the last {source}; "
                    "choose a first_layer or superblock_size whose source layers have the wider window."
                )
        if problems:
            raise PlanError(*problems)

    def window(self, index: int, shape: ModelShape) -> int | None:
        """Tokens that layer `index` attends over (its source's window when it reads from one); None: all."""
        return shape.layers[self.root(index)].window

    def root(self, index: int) -> int:
        """The layer whose keys layer `index` attends to in the end: a map may be computed over shared keys."""
        source = self.rows[index].source
        return index if source is None else self.root(source)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; only rows that differ from the unmodified model are listed."""
        rows = [asdict(row) for row in self.rows if row.operated]
        return {"num_layers": len(self.rows), "rows": rows}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        """The inverse of `to_dict`. Raises PlanError on missing or unknown keys."""
        try:
            plan = cls.unmodified(int(data["num_layers"]))
            rows = {int(row["index"]): _row_from_dict(row) for row in data["rows"]}
            plan._check_indices(rows)
            return plan._with(rows)
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"this is not a layer plan ({error}); expected num_layers and rows.") from error

    def draw(self) -> str:
        """The plan as plain text, top layer first, consecutive unmodified layers folded into one line."""
        lines = []
        for first, last in reversed(list(_runs(self.rows))):
            lines.append(_draw_run(self, first, last))
        return "\n".join(lines)


def _row_from_dict(data: Mapping[str, Any]) -> LayerRow:
    heads, rank = data.get("heads_from"), data.get("compensation_rank")
    if rank is not None and not isinstance(rank, int):
        raise ValueError(f"compensation_rank is {rank!r}, not a whole number")
    return LayerRow(**{**data, "heads_from": None if heads is None else tuple(int(head) for head in heads)})


def _keeps_compensation(old: LayerRow, new: LayerRow) -> bool:
    """Whether `new` has no W_c, or the one that `old` has, in the same place."""
    if not new.compensated:
        return True
    places = [(row.compensation_input, row.compensation_output, row.compensation_rank) for row in (old, new)]
    return old.compensated and places[0] == places[1]


def _row_problems(rows: Sequence[LayerRow], position: int, row: LayerRow) -> list[str]:
    """What is impossible about one row, in words."""
    where = f"layer {row.index}"
    if row.index != position:
        return [f"row {position} of the plan describes {where}; rows must be in layer order."]
    if row.compensated:
        problems = _compensation_problems(row)
        if problems:
            return problems
    if row.dropped:
        links = (row.map_from, row.key_from, row.value_from)
        return [] if links == (None, None, None) else [f"{where} is dropped but still reads attention."]
    if row.heads_from is not None and row.role != "reuse":
        return [f"{where} reuses no map whose heads could be aligned."]
    if row.role == "full":
        return [] if row.value_from == row.index else [f"{where} has its own keys but the values of another layer."]
    if row.role == "reuse" and (row.key_from is not None or row.value_from != row.index):
        return [f"{where} reuses a map and must use its own values and no keys."]
    if row.role == "share" and row.key_from != row.value_from:
        return [f"{where} takes keys and values from different layers."]
    return _source_problems(rows, row)


def _compensation_problems(row: LayerRow) -> list[str]:
    """What is impossible about where a W_c reads and adds."""
    where, reads, adds = f"layer {row.index}", row.compensation_input, row.compensation_output
    if not row.operated:
        return [f"{where} computes its own attention and cannot carry a compensation."]
    for value, allowed in ((reads, COMPENSATION_INPUTS), (adds, COMPENSATION_OUTPUTS)):
        if value not in allowed:
            near = did_you_mean(str(value), allowed)
            return [f"{where} places its W_c at '{value}'.{near} Allowed: {', '.join(allowed)}."]
    if row.dropped and (reads != "attention_input" or adds == "heads"):
        return [f"{where} is dropped: its W_c can only read attention_input and not add to heads."]
    if reads == "value" and not row.caches_values:
        return [f"{where} has no values of its own for its W_c to read."]
    return []


def _head_problems(row: LayerRow, shape: ModelShape) -> list[str]:
    """What does not fit this model about aligned heads."""
    heads, most = row.heads_from, shape.num_heads
    if heads is not None and (len(heads) != most or not all(0 <= head < most for head in heads)):
        return [f"layer {row.index} aligns its heads with {list(heads)}; the model has {most} heads, 0 to {most - 1}."]
    return []


def _rank_problems(rows: Sequence[LayerRow], shape: ModelShape) -> list[str]:
    """Ranks that W_c cannot have, each once, however many layers have it."""
    ranks = {row.compensation_rank for row in rows if row.compensation_rank is not None}
    return [
        f"the plan gives W_c rank {rank}; it must be from 1 to {shape.hidden_size}."
        for rank in sorted(ranks)
        if not 1 <= rank <= shape.hidden_size
    ]


def _source_problems(rows: Sequence[LayerRow], row: LayerRow) -> list[str]:
    """What is impossible about the layer that `row` reads from."""
    where, source = f"layer {row.index}", row.source
    if source is None or not 0 <= source < len(rows):
        return [f"{where} reads from layer {source}, which is not in the model."]
    if source >= row.index:
        return [f"{where} reads from layer {source}, which is not below it."]
    below = rows[source]
    if below.dropped:
        return [f"{where} reads from layer {source}, whose attention is dropped."]
    if row.role == "reuse" and below.map_from != source:
        return [f"{where} reuses the map of layer {source}, which computes none."]
    if row.role == "share" and below.role != "full":
        return [f"{where} shares keys and values of layer {source}, which keeps none of its own."]
    return []


def _runs(rows: Sequence[LayerRow]) -> Iterable[tuple[int, int]]:
    """Ranges (first, last) of consecutive untouched layers nobody reads from; every other layer is a range alone."""
    sources = {row.source for row in rows}
    start = 0
    for row in rows:
        plain = not row.operated and row.index not in sources
        if plain and row.index + 1 < len(rows):
            following = rows[row.index + 1]
            if not following.operated and following.index not in sources:
                continue
        yield start, row.index
        start = row.index + 1


_INPUT_SYMBOLS = {"attention_input": "x W_c", "value": "V W_c", "heads": "heads W_c"}
_OUTPUT_WORDS = {"attention_output": "", "layer_output": " after FFN", "heads": " before W_o"}
_CACHED = {(True, True): "K V", (False, True): "V", (False, False): "-"}


def _draw_run(plan: LayerPlan, first: int, last: int) -> str:
    row = plan.rows[last]
    label = str(last) if first == last else f"{first}-{last}"
    text = {"full": "own map", "reuse": "map of", "share": "K, V of", "drop": "dropped"}[row.role]
    readers = [r.index for r in plan.rows if r.source == last]
    if row.source is not None:
        text += f" {row.source}"
    if readers:
        text += f" -> {readers[0]}-{readers[-1]}" if len(readers) > 2 else f" -> {_list(readers)}"
    bar = {"full": "█" if readers else "│", "reuse": "▒", "share": "▒", "drop": "·"}[row.role]
    width = max([len("+ x W_c"), *(len(_draw_compensation(r)) for r in plan.rows)])
    cached = _CACHED[row.caches_keys, row.caches_values]
    return f"{label:>7} {bar} {text:<24} {_draw_compensation(row):<{width}}  cache {cached}".rstrip()


def _draw_compensation(row: LayerRow) -> str:
    if not row.compensated:
        return ""
    rank = "" if row.compensation_rank is None else f" rank {row.compensation_rank}"
    return f"+ {_INPUT_SYMBOLS[row.compensation_input]}{_OUTPUT_WORDS[row.compensation_output]}{rank}"


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
