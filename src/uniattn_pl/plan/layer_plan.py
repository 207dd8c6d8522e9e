"""The LayerPlan: one row per layer; architectures compile to it, everything else reads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from uniattn_pl.plan.compensation import AUTO_RANK, Compensation
from uniattn_pl.plan.drawing import count_roles, draw
from uniattn_pl.plan.given_up import lost_parts
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.link_checks import row_problems
from uniattn_pl.plan.plan_error import PlanError
from uniattn_pl.plan.roles import FULL, MAP, MEAN, OTHER
from uniattn_pl.plan.saved_form import read_rows, saved_form
from uniattn_pl.plan.shape import ModelShape
from uniattn_pl.plan.shape_checks import (
    attention_problems,
    cross_problems,
    head_problems,
    own_size_problems,
    rank_problems,
    source_size_problems,
)


@dataclass(frozen=True, repr=False)
class LayerPlan:
    """An immutable row per layer; `reuse`, `share_kv` and `drop` return changed copies, `print` draws it.

    Args:
        rows: one per layer of the model, bottom layer first.

    Raises:
        PlanError: a row reads from above itself, from a dropped layer, or from one that has nothing to give.

    Example:
        plan = uniattn_pl.LayerPlan.unmodified(8).reuse([5, 6], source=4, compensated=True).drop([7], compensated=False)
        print(plan)
    """

    rows: tuple[LayerRow, ...]

    def __post_init__(self) -> None:
        problems = [p for position, row in enumerate(self.rows) for p in row_problems(self.rows, position, row)]
        if problems:
            raise PlanError(*problems)

    @classmethod
    def unmodified(cls, num_layers: int, *, other: Iterable[int] = ()) -> LayerPlan:
        """Every layer as in the pre-trained model, in which the layers `other` have no attention (hybrids)."""
        without = frozenset(other)
        return cls(tuple(LayerRow(index, OTHER if index in without else FULL) for index in range(num_layers)))

    @classmethod
    def stock(cls, shape: ModelShape) -> LayerPlan:
        """Every layer as in the pre-trained model of this shape."""
        return cls.unmodified(shape.num_layers, other=set(range(shape.num_layers)) - set(shape.attention_layers))

    def __repr__(self) -> str:
        return f"LayerPlan({count_roles(self)})"

    def __str__(self) -> str:
        return draw(self)

    # Changed copies

    def reuse(self, layers: Iterable[int], source: int, *, compensated: bool) -> LayerPlan:
        """Let `layers` use the attention map of `source`, or of the layer `source` itself reuses (a chain)."""
        self._check_indices([source])
        below = self.rows[source]
        computes = below.source if below.traits.reads == MAP else source
        return self.assign(layers, "reuse", computes, compensated=compensated)

    def reuse_cross_maps(self, layers: Iterable[int] | None = None) -> LayerPlan:
        """Let reuse layers, by default all, use the maps of their sources' cross-attention, too (encoder-decoders)."""
        layers = self.reusing if layers is None else list(layers)
        self._check_indices(layers)
        return self.with_rows({index: replace(self.rows[index], cross_map=True) for index in layers})

    def share_kv(self, layers: Iterable[int], source: int, *, compensated: bool) -> LayerPlan:
        """Let `layers` attend over the keys and values of `source` with their own queries."""
        return self.assign(layers, "share_kv", source, compensated=compensated)

    def drop(self, layers: Iterable[int], *, compensated: bool) -> LayerPlan:
        """Remove the attention of `layers`; a W_c that stays is left where it is."""
        return self.assign(layers, "drop", compensated=compensated, keep_compensation=True)

    def skip(self, layers: Iterable[int], *, compensated: bool) -> LayerPlan:
        """Leave whole blocks out; a W_c then reads the stream that enters its block and adds to it."""
        return self.assign(layers, "skip", compensated=compensated)

    def replace_run(self, first: int, last: int) -> LayerPlan:
        """Leave out the blocks from `first` to `last` and let one W_c, of the first, stand for them all (ReplaceMe)."""
        return self.skip(range(first, last + 1), compensated=False).skip([first], compensated=True)

    def merge_heads(self, layers: Iterable[int], kv_heads: int, *, compensated: bool, merge: str = MEAN) -> LayerPlan:
        """Let `layers` have so many heads of keys and values, each merged of neighbouring ones."""
        return self.assign(layers, "heads", compensated=compensated, kv_heads=kv_heads, merge=merge)

    def limit_window(self, layers: Iterable[int], window: int, sinks: int = 0, *, compensated: bool) -> LayerPlan:
        """Let `layers` attend to the last `window` tokens and to the first `sinks`."""
        return self.assign(layers, "window", compensated=compensated, window=window, sinks=sinks)

    def assign(
        self,
        layers: Iterable[int],
        role: str,
        source: int | None = None,
        *,
        compensated: bool = False,
        keep_compensation: bool = False,
        **sizes: Any,
    ) -> LayerPlan:
        """Give `layers` a role, whatever they were.

        Args:
            layers: 0-based indices.
            role: a name of `ROLES`.
            source: the layer they read from, where the role reads anything.
            compensated: give each a W_c.
            keep_compensation: one that has a W_c already has it placed as before.
            sizes: fields of a `LayerRow` that the role needs.
        """
        layers = list(layers)
        self._check_indices([*layers, *([] if source is None else [source])])
        changed = {}
        for index in layers:
            former = self.rows[index].compensation if keep_compensation else None
            w_c = (former or Compensation()) if compensated else None
            changed[index] = LayerRow(index, role, source, w_c, **sizes)
        return self.with_rows(changed)

    def place_compensation(self, *, input: str, output: str) -> LayerPlan:
        """Let every W_c of the plan read and add elsewhere: one of `COMPENSATION_INPUTS` and `_OUTPUTS`."""
        return self._with_compensations(input=input, output=output)

    def limit_rank(self, rank: int | str | None) -> LayerPlan:
        """Let every W_c of the plan have this rank, or get one when it is fitted (`AUTO_RANK`); None: leave each."""
        return self if rank is None else self._with_compensations(rank=rank)

    def add_bias(self) -> LayerPlan:
        """Let every W_c of the plan add a constant vector, too."""
        return self._with_compensations(bias=True)

    def choose_rank(self, layer: int, rank: int | None) -> LayerPlan:
        """Let the W_c of one layer have this rank; None: in full."""
        compensation = replace(self.rows[layer].compensation or Compensation(), rank=rank)
        return self.with_rows({layer: replace(self.rows[layer], compensation=compensation)})

    def align_heads(self, heads_from: Mapping[int, Sequence[int]]) -> LayerPlan:
        """Let the heads of reuse layers use other heads of their source: layer -> source head per head."""
        return self.with_rows({i: replace(self.rows[i], heads_from=tuple(heads)) for i, heads in heads_from.items()})

    def drop_reuse(self, layers: Iterable[int], *, compensated: bool) -> LayerPlan:
        """Remove the attention of reuse layers as well (UniAttn + LLMDrop, paper Figure 5).

        Raises:
            PlanError: one of `layers` does not reuse a map.
        """
        layers = list(layers)
        self._check_indices(layers)
        others = [index for index in layers if index not in self.reusing]
        if others:
            reusing = _list(self.reusing) or "none"
            raise PlanError(f"layer {_list(others)} reuses no attention map; reuse layers: {reusing}.")
        return self.drop(layers, compensated=compensated)

    def with_rows(self, changed: Mapping[int, LayerRow]) -> LayerPlan:
        """The plan with some rows replaced, by index."""
        return replace(self, rows=tuple(changed.get(row.index, row) for row in self.rows))

    def _with_compensations(self, **fields: Any) -> LayerPlan:
        return self.with_rows(
            {
                row.index: replace(row, compensation=replace(row.compensation, **fields))
                for row in self.rows
                if row.compensation is not None
            }
        )

    # Questions

    @property
    def operated(self) -> tuple[int, ...]:
        """Layers the architecture changed."""
        return tuple(row.index for row in self.rows if row.operated)

    @property
    def compensated(self) -> tuple[int, ...]:
        """Layers that carry a W_c."""
        return tuple(row.index for row in self.rows if row.compensated)

    @property
    def open_ranks(self) -> tuple[int, ...]:
        """Layers whose W_c gets its rank when it is fitted."""
        return tuple(row.index for row in self.rows if row.compensation and row.compensation.rank == AUTO_RANK)

    @property
    def reusing(self) -> tuple[int, ...]:
        """Layers that use another's attention map."""
        return tuple(row.index for row in self.rows if row.traits.reads == MAP)

    def readers(self, index: int) -> list[LayerRow]:
        """Rows of the layers that read from layer `index`, bottom first."""
        return [row for row in self.rows if row.source == index]

    def read_from(self, index: int) -> frozenset[str]:
        """What other layers take from layer `index`: its map, its keys and values, both or nothing."""
        return frozenset(row.traits.reads for row in self.readers(index) if row.traits.reads is not None)

    def sources(self, reads: str) -> tuple[int, ...]:
        """Layers that others take something from: their maps (`MAP`) or their keys and values (`KEY_VALUE`)."""
        return tuple(row.index for row in self.rows if reads in self.read_from(row.index))

    def last_map_reader(self, index: int) -> int:
        """The uppermost layer that uses the attention map of layer `index`: itself, when none does."""
        return max((row.index for row in self.readers(index) if row.traits.reads == MAP), default=index)

    def cross_readers(self, index: int) -> list[int]:
        """The layers that use the map of the cross-attention of layer `index`, bottom first."""
        return [row.index for row in self.readers(index) if row.cross_map]

    def replaced_until(self, index: int) -> int:
        """The last block that a W_c of block `index` stands for: it, or of those left out behind it without one."""
        last = index
        if not self.rows[index].traits.feed_forward:
            behind = self.rows[index + 1 :]
            last += next((i for i, row in enumerate(behind) if row.traits.feed_forward or row.compensated), len(behind))
        return last

    def root(self, index: int) -> int:
        """The layer whose keys layer `index` attends to in the end: a map may be computed over shared keys."""
        source = self.rows[index].source
        return index if source is None else self.root(source)

    def window(self, index: int, shape: ModelShape) -> int | None:
        """Tokens that layer `index` attends over (its source's window when it reads from one); None: all."""
        root = self.root(index)
        return self.rows[root].sized(shape.layers[root]).window

    # Checks

    def check(self, shape: ModelShape) -> None:
        """Raise PlanError unless the plan fits: same depth, and no reader that sees further than its source."""
        if len(self.rows) != shape.num_layers:
            raise PlanError(f"the plan has {len(self.rows)} layers, the model ({shape.model_type}) {shape.num_layers}.")
        problems = attention_problems(self.rows, shape)
        if problems:
            raise PlanError(*problems)
        problems = rank_problems(self.rows, shape)
        if self.rows and not any(row.traits.attends for row in self.rows):
            roles = ", ".join(sorted({row.role for row in self.rows}))
            problems.append(f"no layer attends to other tokens (roles: {roles}); a model needs at least one that does.")
        for row in self.rows:
            problems += head_problems(row, shape) + own_size_problems(row, shape)
            if row.source is None:
                continue
            problems += source_size_problems(row, shape) + cross_problems(row, shape)
            own, source = shape.layers[row.index].window, self.window(row.index, shape)
            if source is not None and (own is None or own > source):
                sees = "every token" if own is None else f"the last {own} tokens"
                problems.append(
                    f"layer {row.index} sees {sees} but its source, layer {row.source}, only the last {source}; "
                    "choose a first_layer or superblock_size whose source layers have the wider window."
                )
        if problems:
            raise PlanError(*problems)

    def reduces(self, former: LayerPlan) -> list[str]:
        """Why a model built on `former` cannot go on to this plan, a clause by layer: see `lost_parts`."""
        return lost_parts(former.rows, self.rows)

    def _check_indices(self, layers: Iterable[int]) -> None:
        outside = sorted({index for index in layers if not 0 <= index < len(self.rows)})
        if outside:
            raise PlanError(f"the model has layers 0 to {len(self.rows) - 1}; there is no layer {_list(outside)}.")

    # Files

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; only rows that differ from the unmodified model are listed."""
        return saved_form(self.rows)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LayerPlan:
        """The inverse of `to_dict`, of this and of former versions. Raises PlanError on anything else."""
        try:
            return cls(tuple(read_rows(data)))
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise PlanError(f"this is not a layer plan ({error}); expected num_layers and rows.") from error


def _list(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
