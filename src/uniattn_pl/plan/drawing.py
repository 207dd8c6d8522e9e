"""A plan as plain text, for terminals, run folders and model cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from uniattn_pl.plan.layer_row import LayerRow

SOURCE_SYMBOL = "█"  # of a layer with its own map that others read
_INPUT_SYMBOLS = {"attention_input": "x W_c", "value": "V W_c", "heads": "heads W_c"}
_OUTPUT_WORDS = {"attention_output": "", "layer_output": " after FFN", "heads": " before W_o"}


class Drawable(Protocol):
    """What has a row per layer, as a plan does."""

    @property
    def rows(self) -> tuple[LayerRow, ...]:
        """Bottom layer first."""


def draw(plan: Drawable) -> str:
    """The plan top layer first, one line each, consecutive unmodified layers folded into one."""
    return "\n".join(_draw_run(plan.rows, first, last) for first, last in reversed(list(_runs(plan.rows))))


def count_roles(plan: Drawable) -> str:
    """The plan in a few words: how many layers there are, of which roles, and how many have a W_c."""
    roles = ", ".join(f"{count} {role}" for role, count in Counter(row.role for row in plan.rows).items())
    compensated = sum(row.compensated for row in plan.rows)
    return f"{len(plan.rows)} layers: {roles}" + f"; {compensated} with W_c" * bool(compensated)


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


def _draw_run(rows: Sequence[LayerRow], first: int, last: int) -> str:
    row = rows[last]
    indices = str(last) if first == last else f"{first}-{last}"
    readers = [reader.index for reader in rows if reader.source == last]
    text = row.traits.label
    if row.source is not None:
        text += f" {row.source}"
    text += _draw_sizes(row) + " and cross map" * row.cross_map
    if readers:
        text += f" -> {readers[0]}-{readers[-1]}" if len(readers) > 2 else f" -> {', '.join(map(str, readers))}"
    symbol = SOURCE_SYMBOL if readers and not row.operated else row.traits.symbol
    width = max([len("+ x W_c"), *(len(_draw_compensation(r)) for r in rows)])
    cached = " ".join("K" * row.caches_keys + "V" * row.caches_values) or "-"
    cached += ", cross V" * row.cross_map  # others hold both of the source
    return f"{indices:>7} {symbol} {text:<24} {_draw_compensation(row):<{width}}  cache {cached}".rstrip()


def _draw_sizes(row: LayerRow) -> str:
    """What a row has a number of its own of: KV heads, or a window and its sinks."""
    sinks = f" + {row.sinks} first" if row.sinks else ""
    return "".join(f" {size}" for size in (row.kv_heads, row.window) if size is not None) + sinks


def _draw_compensation(row: LayerRow) -> str:
    compensation = row.compensation
    if compensation is None:
        return ""
    rank = "" if compensation.rank is None else f" rank {compensation.rank}"
    bias = " + b" if compensation.bias else ""
    return f"+ {_INPUT_SYMBOLS[compensation.input]}{bias}{_OUTPUT_WORDS[compensation.output]}{rank}"
