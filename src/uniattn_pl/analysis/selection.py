"""The loss as reuse layers are added one by one, for each way of choosing them (paper Table 9 and Figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uniattn_pl.architectures.superblocks import superblocks
from uniattn_pl.plan import ModelShape
from uniattn_pl.plan.changes import Change
from uniattn_pl.plan.cost_ratio import Cost
from uniattn_pl.search.greedy import SearchSettings
from uniattn_pl.search.model_measurements import ModelMeasurements
from uniattn_pl.search.unified_streams import UnifiedStreams

SUPERBLOCK_SIZE = 4
CANDIDATES = 16


@dataclass(frozen=True)
class SelectionTrace:
    """The layers a selection makes reuse layers, in its order, and the loss (nats) after each; `losses[0]`: none."""

    layers: list[int]
    losses: list[float]


def selection_traces(measurements: ModelMeasurements, *, count: int, tokens: int) -> dict[str, SelectionTrace]:
    """Loss against the number of reuse layers, without W_c, for the top Superblocks, similarity and greedy.

    Args:
        measurements: of the original model.
        count: reuse layers of the last point; fewer where a selection cannot have as many.
        tokens: training tokens the loss is taken on; greedy chooses by the same ones.
    """
    shape = measurements.shape
    similarity = measurements.map_similarity()
    orders = {
        "top": top_order(shape, count),
        "similarity": sorted(shape.attention_layers[1:], key=lambda layer: -(similarity[layer] or 0.0))[:count],
    }
    streams = UnifiedStreams(measurements.model, [], measurements.batches(tokens, 0), initialiser="zero", ridge=0.0)
    traces = {name: _trace(streams, order) for name, order in orders.items()}
    budget = 1 - count / (2 * len(shape.attention_layers))  # a reuse layer gives up its K cache, half of what it kept
    points = measurements.search(SearchSettings(("reuse",), Cost("key_caches", 1), budget, False, CANDIDATES), tokens)
    chosen = [point.layer for point in points if point.layer is not None]
    return {**traces, "greedy": SelectionTrace(chosen, [point.score for point in points])}


def top_order(shape: ModelShape, count: int) -> list[int]:
    """Reuse layers of Superblocks of 4 at the top, the uppermost Superblock first, as its number grows."""
    num_blocks = min(-(-count // (SUPERBLOCK_SIZE - 1)), shape.num_layers // SUPERBLOCK_SIZE)
    blocks = superblocks(shape, size=SUPERBLOCK_SIZE, count=max(num_blocks, 1), first_layer=None)
    return [layer for _, readers in reversed(blocks) for layer in readers][:count]


def _trace(streams: UnifiedStreams, order: Sequence[int]) -> SelectionTrace:
    """The loss as the layers of `order` begin, one by one, to use the map of the nearest layer below that has one."""
    plan = streams.plan
    layers, losses = [], [streams.score]
    for layer in order:
        changed = Change(layer, "reuse").apply(plan, compensated=False)
        if changed is None:
            continue
        plan = changed
        layers.append(layer)
        losses.append(streams.try_plan(plan, min(plan.operated)))
    return SelectionTrace(layers, losses)


def trace_lines(traces: Mapping[str, SelectionTrace]) -> list[str]:
    """A table with one line per number of reuse layers: each selection's loss and the layer it added."""
    lines = ["reused " + " ".join(f"{name:>18}" for name in traces)]
    for number in range(max(len(trace.losses) for trace in traces.values())):
        lines.append(f"{number:>6} " + " ".join(f"{_cell(trace, number):>18}" for trace in traces.values()))
    return lines


def _cell(trace: SelectionTrace, number: int) -> str:
    if number >= len(trace.losses):
        return "-"
    added = f"  (+{trace.layers[number - 1]:>2})" if number else " " * 7
    return f"{trace.losses[number]:.4f}{added}"
