"""How much memory a training stage takes on each device: an estimate, a pure function of plan, shape and sizes.

Activations are counted tensor by tensor as autograd saves them in transformers' decoder layers with a fused kernel
(`tests/plan/test_memory.py` counts the same in real models); `benchmarks/memory.py` measures whole stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.plan.costs import compensation_weights, layer_parameters, parameters, projection_sizes
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.roles import KEY, KEY_VALUE, MAP, OUTPUT, QUERY, VALUE
from uniattn_pl.plan.shape import Experts, LayerShape, ModelShape

NORM_BYTES = 4  # a norm computes in float32 whatever the model's dtype
INDEX_BYTES = 8
# Per logit, while the loss is computed: in float32 its logarithm, and the gradients of both.
LOSS_BYTES = 12
# A layer's weights are gathered while the one before it computes.
GATHERED_LAYERS = 2


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per device of what one training stage holds at its peak.

    Attributes:
        weights, gradients, optimizer: of what this device keeps; a shard of them where they are sharded.
        activations: what the backward pass needs, and the logits.
        gathered: weights (and their gradients) that a sharded model has in full for a moment.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered


def training_memory(
    plan: LayerPlan,
    shape: ModelShape,
    *,
    stage: int,
    micro_batch_size: int,
    length: int,
    weight_bytes: int,
    activation_bytes: int,
    gradient_checkpointing: bool = False,
    num_devices: int = 1,
    scored_fraction: float = 1.0,
    lora_rank: int | None = None,
    loss_chunk: int | None = None,
) -> TrainingMemory:
    """Estimate a stage's peak: AdamW (two states per trained weight); gradients live until the next forward is over.

    Args:
        stage: 1 trains W_c only (nothing below the first compensated layer keeps activations), 2 everything.
        micro_batch_size: sequences per device and forward.
        length: tokens per sequence.
        weight_bytes: bytes of a weight (4 for fp32 and mixed precision, 2 for true bf16).
        activation_bytes: bytes of an activation; less than `weight_bytes` in mixed precision.
        num_devices: over which weights, gradients and optimizer state are spread (FSDP).
        scored_fraction: of the tokens, those of responses, whose logits are computed.
        loss_chunk: tokens whose logits are held at once; default: all.
        lora_rank: stage 2 trains updates of this rank of the attention projections, and W_c.
    """
    total = parameters(plan, shape)
    trained = _trained(plan, shape, stage, lora_rank)
    tokens = micro_batch_size * length
    scored = int(scored_fraction * tokens)
    logits = min(scored, loss_chunk or scored) * shape.vocab_size * LOSS_BYTES
    # transformers' grouped products of experts are no part of autocast: they compute in the dtype of the weights
    sizes = _ElementBytes(activation_bytes, of_experts=weight_bytes)
    saved = tokens * _saved_bytes(plan, shape, stage, sizes, checkpointing=gradient_checkpointing)
    recomputed = tokens * _largest_layer(plan, shape, sizes) if gradient_checkpointing else 0
    adapters = trained if lora_rank is not None and stage == 2 else 0
    whole = stage == 2 and lora_rank is None
    cast = trained - whole * sum(layer.experts.parameters for layer in shape.layers if layer.experts is not None)
    mixed = activation_bytes < weight_bytes and num_devices == 1
    return TrainingMemory(
        weights=(total + adapters) * weight_bytes // num_devices,
        gradients=trained * weight_bytes // num_devices,
        optimizer=2 * trained * weight_bytes // num_devices,
        # autocast keeps a cast of what trains until the backward pass is over
        activations=saved + max(logits, recomputed) + mixed * cast * activation_bytes,
        gathered=_gathered(plan, shape, activation_bytes) if num_devices > 1 else 0,
    )


@dataclass(frozen=True)
class _ElementBytes:
    """Bytes of a number in what is saved for the backward pass."""

    of_activations: int
    of_experts: int


def _trained(plan: LayerPlan, shape: ModelShape, stage: int, lora_rank: int | None) -> int:
    compensations = sum(compensation_weights(row, shape) for row in plan.rows)
    if stage == 1:
        return compensations
    if lora_rank is None:
        return parameters(plan, shape)
    layers = zip(plan.rows, shape.layers, strict=True)
    return compensations + lora_rank * sum(_adapted_sizes(row, layer, shape) for row, layer in layers)


def _adapted_sizes(row: LayerRow, layer: LayerShape, shape: ModelShape) -> int:
    """Inputs plus outputs of the attention projections a layer keeps."""
    sizes = projection_sizes(layer, shape)
    return sum(sum(sizes[projection]) for projection in row.traits.projections)


def _saved_bytes(plan: LayerPlan, shape: ModelShape, stage: int, sizes: _ElementBytes, *, checkpointing: bool) -> int:
    """Per token: what autograd keeps of all layers, or with checkpointing what enters them and what they publish."""
    first = 0 if stage == 2 else min(plan.compensated, default=shape.num_layers)
    rows = list(zip(plan.rows[first:], shape.layers[first:], strict=True))
    head = shape.hidden_size * (NORM_BYTES + 2 * sizes.of_activations * (stage == 2))
    if not checkpointing:
        return head + sum(_layer_bytes(row, layer, shape, sizes, trains=stage == 2) for row, layer in rows)
    published = sum(_published_elements(row.index, plan, shape) for row, _ in rows)
    return head + (shape.hidden_size * len(rows) + published) * sizes.of_activations


def _largest_layer(plan: LayerPlan, shape: ModelShape, sizes: _ElementBytes) -> int:
    rows = zip(plan.rows, shape.layers, strict=True)
    return max(_layer_bytes(row, layer, shape, sizes, trains=True) for row, layer in rows)


def _layer_bytes(row: LayerRow, layer: LayerShape, shape: ModelShape, sizes: _ElementBytes, *, trains: bool) -> int:
    """Per token: norms (their float32 input, and where they train what they scale and give), attention, feed-forward.

    A frozen projection needs nothing of its input; a W_c reads what the norm gives.
    """
    hidden, experts = shape.hidden_size, layer.experts
    norms = (layer.attention_norms + layer.other) // hidden
    kept_outputs = 2 * norms if trains else int(row.compensated)
    # queries, keys and values as they are projected, and what enters W_o
    heads = layer.heads
    widths = {QUERY: heads.query_width, KEY: heads.key_width, VALUE: heads.value_width, OUTPUT: heads.output_width}
    attention = sum(widths[projection] for projection in row.traits.projections)
    router = experts.count * hidden if experts is not None else 0
    feed_forward = _gated_elements((layer.feed_forward - router) // (3 * hidden), trains=trains)
    elements = kept_outputs * hidden + attention + feed_forward
    routed = 0 if experts is None else _routed_bytes(experts, hidden, sizes.of_experts, trains=trains)
    return norms * hidden * NORM_BYTES + elements * sizes.of_activations + routed


def _routed_bytes(experts: Experts, hidden: int, element: int, *, trains: bool) -> int:
    """Per token: by expert that serves it, what it computes, its output, which is weighted, and, if it trains, its
    input; of the router, probabilities of all experts in float32 and three tables of indices."""
    of_one = _gated_elements(experts.matrices // (3 * hidden), trains=trains) + (2 if trains else 1) * hidden
    return experts.per_token * (of_one * element + 3 * INDEX_BYTES) + experts.count * NORM_BYTES


def _gated_elements(inner: int, *, trains: bool) -> int:
    """Per token: of act(gate) * up, both factors and what the activation takes; the product, where W_down trains."""
    return (4 if trains else 3) * inner


def _published_elements(index: int, plan: LayerPlan, shape: ModelShape) -> int:
    """Per token: what a source gives its readers, which no recomputation gives back."""
    read_from, heads = plan.read_from(index), shape.layers[index].heads
    of_map = (heads.query_width + heads.key_width) * (MAP in read_from)  # its queries and keys, for replay
    of_keys = (heads.key_width + heads.value_width) * (KEY_VALUE in read_from)
    return max(of_map, of_keys)


def _gathered(plan: LayerPlan, shape: ModelShape, element: int) -> int:
    """The embeddings, the layers in use, and the gradient of one of them before it is spread out."""
    rows = zip(plan.rows, shape.layers, strict=True)
    largest = max(layer_parameters(row, layer, shape) for row, layer in rows)
    return (shape.embedding + (GATHERED_LAYERS + 1) * largest) * element
