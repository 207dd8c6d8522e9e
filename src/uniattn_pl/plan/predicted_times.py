"""How long a plan takes on a card: what it cannot beat, and what it takes at the share of the peaks that is reached.

Three ways of computing attention are told apart, since they do different work for the same plan (`ATTENTIONS`):

- least: each product of the plan once, half a map where it is causal, nothing moved but weights and caches. The bound.
- fused: the kernels of sdpa and FlashAttention. No prompt's map is in memory, so each of its readers computes it again.
- eager: transformers' plain attention, the paper's: whole rectangles, whose maps are written and read between kernels.
  A reader takes the map as it is, which is where the paper's savings come from.

Work that overlaps takes the longer of computing and moving; what eager attention moves between its products is added.
All tensors are of 16 bits. What Python takes to launch kernels is left out: at batch 1 it is most of a decoding step,
unless the step is captured as a graph. Symbols as in `costs.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.plan import costs
from uniattn_pl.plan.card_rates import CardRates
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.roles import KEY_VALUE, MAP
from uniattn_pl.plan.shape import Heads, ModelShape

LEAST, FUSED, EAGER_MAPS = "least", "fused", "eager"
ATTENTIONS = {LEAST: "at least", FUSED: "fused kernels", EAGER_MAPS: "eager"}
ELEMENT_BYTES = 2
# Between its two products eager attention scales and masks the map (read and written in 16 bits, each time), takes the
# softmax into float32 (2 and 4 bytes) and casts it back (4 and 2); at its peak it holds both.
EAGER_MAP_BYTES = 4 + 4 + 6 + 6
EAGER_MAP_HELD = 2 + 4


@dataclass(frozen=True)
class Utilisation:
    """The share of a card's peaks that is reached: of FLOP/s in products, of bytes/s in what is moved."""

    products: float = 1.0
    memory: float = 1.0


PEAKS = Utilisation()
REACHED = Utilisation(products=0.52, memory=0.6)
"""On an H100 with sdpa (benchmarks/gpu/2026-11-26_h100.json): prompts of 8,192 tokens and more 0.51 to 0.54 of FLOP/s,
steps of 32 sequences 0.64 to 0.67 of bytes/s, of one 0.51 to 0.60. That other cards reach as much is assumed."""


@dataclass(frozen=True)
class Timed:
    """What is timed.

    Attributes:
        batch_size: sequences.
        length: tokens of each prompt, or those in the cache of a decoding step.
        attention: least, fused or eager.
        reached: of the card's peaks.
    """

    batch_size: int
    length: int
    attention: str = LEAST
    reached: Utilisation = PEAKS


def prefill_seconds(plan: LayerPlan, shape: ModelShape, card: CardRates, case: Timed) -> float:
    """Seconds to the first token."""
    flops = costs.prefill_flops(plan, shape, batch_size=case.batch_size, length=case.length)
    flops += case.batch_size * sum(_more_products(row, plan, shape, case) for row in plan.rows)
    maps = 0
    if case.attention == EAGER_MAPS:
        computing = sum(shape.layers[row.index].heads.queries for row in plan.rows if row.traits.products == 2)
        maps = EAGER_MAP_BYTES * case.batch_size * computing * case.length**2
    products = _seconds(card, case, flops, _weight_bytes(plan, shape, case.batch_size * case.length))
    return products + _seconds(card, case, 0, maps)


def decode_seconds(plan: LayerPlan, shape: ModelShape, card: CardRates, case: Timed) -> float:
    """Seconds of one step, one token of each sequence.

    A reader of maps reads its values, one of keys and values its source's once more. Eager attention copies keys and
    values for each query head of their group first, except for readers of maps; fused kernels do the least here.
    """
    flops = costs.decode_flops(plan, shape, batch_size=case.batch_size, length=case.length)
    moved = 0
    for row in plan.rows:
        window = plan.window(row.index, shape)
        tokens = case.length if window is None else min(case.length, window)
        of_keys = plan.root(row.index) if row.traits.reads == KEY_VALUE else row.index
        heads = plan.rows[of_keys].sized(shape.layers[of_keys]).heads
        moved += case.batch_size * tokens * _moved_per_token(row, heads, case.attention)
    return _seconds(card, case, flops, _weight_bytes(plan, shape, case.batch_size) + moved)


def held_bytes(plan: LayerPlan, shape: ModelShape, case: Timed, *, prompt: bool) -> int:
    """Bytes that there must be room for at least: weights, cache and, in a prompt under eager attention, one map."""
    weights = ELEMENT_BYTES * costs.parameters(plan, shape)
    size = {"batch_size": case.batch_size, "length": case.length, "bytes_per_element": ELEMENT_BYTES}
    cache = costs.kv_cache_bytes(plan, shape, **size)
    if not prompt or case.attention != EAGER_MAPS:
        return weights + cache
    heads = max(layer.heads.queries for layer in shape.layers)
    return weights + cache + EAGER_MAP_HELD * case.batch_size * heads * case.length**2


def _moved_per_token(row: LayerRow, heads: Heads, attention: str) -> int:
    """Bytes that a step moves for each token in the cache that a layer attends to."""
    if not row.traits.attends:
        return 0
    if row.traits.reads == MAP:
        return ELEMENT_BYTES * heads.value_width
    group = heads.queries // heads.groups
    copied = 2 * group if attention == EAGER_MAPS and group > 1 else 0  # written, and read by the products
    return ELEMENT_BYTES * (heads.key_width + heads.value_width) * (1 + copied)


def _more_products(row: LayerRow, plan: LayerPlan, shape: ModelShape, case: Timed) -> int:
    """FLOPs of a layer's attention in a prompt beyond those of the plan."""
    if not row.traits.attends or case.attention == LEAST:
        return 0
    heads = shape.layers[row.index].heads
    pairs = costs.query_key_pairs(case.length, plan.window(row.index, shape))
    if case.attention == FUSED:
        return 2 * heads.query_width * pairs if row.traits.reads == MAP else 0
    widths = heads.query_width * (row.traits.products == 2) + heads.output_width
    return 2 * widths * (case.length**2 - pairs)


def _weight_bytes(plan: LayerPlan, shape: ModelShape, tokens: int) -> int:
    """Bytes of the weights that `tokens` tokens of one forward need."""
    return costs.decode_bytes(plan, shape, batch_size=tokens, length=0, bytes_per_element=ELEMENT_BYTES)


def _seconds(card: CardRates, case: Timed, flops: float, moved_bytes: float) -> float:
    computing = flops / (card.flops_per_s * case.reached.products)
    return max(computing, moved_bytes / (card.bytes_per_s * case.reached.memory))
