"""How much memory forwards without gradients take on a device: of a prompt, of decoding, and of the calibration pass.

Pure functions of plan, shape and sizes, held against the peaks that an H100 has measured and the streams that a
calibration really keeps (`tests/plan/test_forward_memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.plan.costs import compensation_weights, cross_map_width, kv_cache_bytes, parameters
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.roles import FIT, KEY_VALUE, MAP, OUTPUT
from uniattn_pl.plan.shape import LayerShape, ModelShape

FLOAT32, FLOAT64 = 4, 8
# What a forward holds of each token beside its widest layer: the embeddings, what enters the layer, the residual, and
# what the norm gives.
HIDDEN_STATES = 4
FACTORS = 3  # act(gate), up, and their product
LEAST_SQUARES, JOINT = "least_squares", "joint_least_squares"


@dataclass(frozen=True)
class InferenceMemory:
    """Bytes on a device at the peak of a prefill: weights, the cache behind it, and what its largest chunk computes."""

    weights: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


def inference_memory(
    plan: LayerPlan, shape: ModelShape, *, batch_size: int, length: int, chunk: int, element_bytes: int
) -> InferenceMemory:
    """Estimate the peak of a prefill through fused kernels that keep no map.

    Args:
        batch_size, length: sequences, and tokens of each.
        chunk: tokens of each that go through the model together.
        element_bytes: of weights, activations and cache.
    """
    tokens = batch_size * min(length, chunk)
    published = sum(_publishes(index, plan, shape) for index in range(shape.num_layers))
    return InferenceMemory(
        weights=parameters(plan, shape) * element_bytes,
        cache=kv_cache_bytes(plan, shape, batch_size=batch_size, length=length, bytes_per_element=element_bytes),
        activations=tokens * (_widest(shape) + published) * element_bytes + batch_size * shape.vocab_size * FLOAT32,
    )


@dataclass(frozen=True)
class CalibrationMemory:
    """Bytes of a calibration pass.

    Attributes:
        weights: of the original, and of the converted model what is not its own; on the device.
        sums: the normal equations of one layer, on the device.
        working: one batch in one layer, and what was fetched for the next; on the device.
        streams: hidden states of all batches between two layers and what sources published; on the device, in main
            memory and in files.
    """

    weights: int
    sums: int
    working: int
    streams: int

    @property
    def on_device(self) -> int:
        """At least, when no stream stays there."""
        return self.weights + self.sums + self.working


def calibration_memory(
    plan: LayerPlan,
    shape: ModelShape,
    *,
    sequences: int,
    batch_size: int,
    length: int,
    element_bytes: int,
    initialiser: str,
) -> CalibrationMemory:
    """Estimate what fitting every W_c takes (`calibration/streaming.py`).

    Args:
        sequences: fitted and held out.
        batch_size: sequences that go through a layer together.
        length: tokens of each at most; shorter rows need less.
        element_bytes: of weights and hidden states.
        initialiser: a name of the config's.
    """
    hidden = shape.hidden_size
    compensated = [row for row in plan.rows if row.compensated]
    refitted = [shape.layers[row.index].output for row in compensated if OUTPUT in row.traits.projections]
    added = sum(compensation_weights(row, shape) for row in compensated) + (initialiser == JOINT) * sum(refitted)
    added += sum(_merged(row, shape.layers[row.index]) for row in plan.rows if row.kv_heads is not None)
    heads = max((layer.heads.output_width for layer in shape.layers), default=0)
    features = {JOINT: hidden + heads, LEAST_SQUARES: hidden}.get(initialiser, 0)
    # gram and cross product in float64, of all batches and of the last one; then gram, what is solved, and its factor
    sums = FLOAT64 * features * (3 * features + 2 * hidden)
    in_flight = 2 * hidden + _live(plan, shape)
    # W_c's input, the heads, target, unified state and error, in float32
    sample = FLOAT32 * (4 * hidden + heads)
    batch = batch_size * length
    return CalibrationMemory(
        weights=(parameters(LayerPlan.stock(shape), shape) + added) * element_bytes,
        sums=sums,
        working=batch * ((_widest(shape) + 2 * in_flight) * element_bytes + sample),
        streams=sequences * length * in_flight * element_bytes,
    )


def _live(plan: LayerPlan, shape: ModelShape) -> int:
    """Numbers per token of what sources have published and a layer further up still reads, where it is most."""
    most = 0
    for index in range(shape.num_layers):
        live = {row.source for row in plan.rows[index:] if row.source is not None and row.source <= index}
        most = max(most, sum(_publishes(source, plan, shape) for source in live))
    return most


def _publishes(index: int, plan: LayerPlan, shape: ModelShape) -> int:
    """Numbers per token that a layer gives its readers: queries and keys of maps, keys and values."""
    read, heads = plan.read_from(index), plan.rows[index].sized(shape.layers[index]).heads
    keys = heads.key_width if read else 0
    of_cross = cross_map_width(index, plan, shape)
    return keys + (MAP in read) * heads.query_width + (KEY_VALUE in read) * heads.value_width + of_cross


def _merged(row: LayerRow, layer: LayerShape) -> int:
    """Weights of merged keys and values, and of queries fitted to them, which are not the original's."""
    sized = row.sized(layer)
    return sized.key + sized.value + (row.merge == FIT) * sized.query


def _widest(shape: ModelShape) -> int:
    """Numbers per token that a forward holds in the widest feed-forward."""
    return HIDDEN_STATES * shape.hidden_size + FACTORS * max(_inner(layer, shape) for layer in shape.layers)


def _inner(layer: LayerShape, shape: ModelShape) -> int:
    """Width of a feed-forward of three matrices: of a mixture, all that serves a token."""
    experts = layer.experts
    routed = 0 if experts is None else experts.per_token * experts.matrices
    return (layer.feed_forward + routed) // (3 * shape.hidden_size)
