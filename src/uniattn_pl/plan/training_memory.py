"""How much memory a training stage takes on each device: an estimate, a pure function of plan, shape and sizes.

Activations are counted tensor by tensor as autograd saves them in transformers' decoder layers with a fused kernel
(`tests/plan/test_memory.py` counts the same in real models); `benchmarks/memory.py` measures whole stages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from uniattn_pl.plan.costs import (
    compensation_weights,
    cross_map_width,
    layer_parameters,
    map_weights,
    parameters,
    projection_sizes,
)
from uniattn_pl.plan.dora_memory import row_lengths, saved_elements
from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.optimizer_memory import ADAMW, TrainedWeights
from uniattn_pl.plan.roles import KEY, KEY_VALUE, MAP, OUTPUT, QUERY, VALUE
from uniattn_pl.plan.shape import Experts, LayerShape, ModelShape

NORM_BYTES = 4  # a norm computes in float32 whatever the model's dtype
INDEX_BYTES = 8
# Per logit, while the loss is computed: in float32 its logarithm, and the gradients of both.
LOSS_BYTES = 12
# Of a weight in 4 bits: its scale has 8 bits for 64 of them, and that one float32 for 256.
FOUR_BITS = 1 / 2 + 1 / 64 + 4 / (64 * 256)
# A layer's weights are gathered while the one before it computes.
GATHERED_LAYERS = 2


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes per device of what one training stage holds at its peak.

    Attributes:
        weights, gradients, optimizer: of what this device keeps; a shard of them where they are sharded.
        activations: what the backward pass needs, and the logits.
        gathered: weights (and their gradients) that a sharded model has in full for a moment.
        teacher: weights of the model that is learned from, and what is compared with it at once.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    gathered: int = 0
    teacher: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.gathered + self.teacher


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
    frozen_bytes: int | None = None,
    quantized: bool = False,
    dora: bool = False,
    trains_maps: bool = False,
    optimizer: str = ADAMW,
) -> TrainingMemory:
    """Estimate a stage's peak; gradients live until the next forward is over.

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
        frozen_bytes: bytes of a weight of the matrices that do not train; default: `weight_bytes`.
        quantized, dora: those matrices are in 4 bits; the lengths of their rows train, too.
        trains_maps: stage 1 trains the queries and keys of sources of maps, too.
        optimizer: whose states there are (`plan.optimizer_memory`).
    """
    kept = _Kept(stage, lora_rank if stage == 2 else None, plan.sources(MAP) if trains_maps and stage == 1 else ())
    lora_rank, whole = kept.lora_rank, kept.everything
    trains = _trained(plan, shape, kept)
    in_4_bits, dora = quantized and lora_rank is not None, dora and lora_rank is not None
    if dora:
        trains = replace(trains, vectors=row_lengths(plan, shape))
    trained = trains.all
    mixed = activation_bytes < weight_bytes and num_devices == 1
    # transformers' grouped products of experts are no part of autocast: they compute in the dtype of the weights. Nor
    # are embeddings and norms.
    sizes = _ElementBytes(activation_bytes, weight_bytes, weight_bytes if mixed else activation_bytes)
    tokens = micro_batch_size * length
    scored = int(scored_fraction * tokens)
    logits = min(scored, loss_chunk or scored) * shape.vocab_size * LOSS_BYTES
    saved = tokens * _saved_bytes(plan, shape, sizes, kept, checkpointing=gradient_checkpointing)
    if dora:
        saved += activation_bytes * saved_elements(plan, shape, tokens, checkpointing=gradient_checkpointing)
    if shape.encoder is not None and stage == 2:  # under W_c alone no gradient reaches it
        encoder, unmodified = shape.encoder, LayerPlan.unmodified(shape.encoder.num_layers)
        saved += tokens * _saved_bytes(unmodified, encoder, sizes, kept, checkpointing=gradient_checkpointing)
    recomputed = tokens * _largest_layer(plan, shape, sizes) if gradient_checkpointing else 0
    # autocast keeps a cast of what trains until the backward pass is over
    routed = (layer.experts for _, layer in _layers(plan, shape) if layer.experts is not None)
    casts = trained - whole * sum(experts.parameters for experts in routed)
    halved = 0
    if not whole:
        # each product keeps the cast of a frozen matrix that is not halved, as no output embedding is that is tied
        in_layers = [_layer_matrices(*both) for both in _layers(plan, shape)[_first_kept(plan, kept) :]]
        if frozen_bytes is None and not in_4_bits:
            casts += max(in_layers, default=0) if gradient_checkpointing else sum(in_layers)
        if frozen_bytes is not None:
            halved = (weight_bytes - frozen_bytes) * (_matrices(plan, shape) - _trained_map_weights(plan, shape, kept))
        if in_4_bits:
            halved += int(((frozen_bytes or weight_bytes) - FOUR_BITS) * sum(in_layers))
        if scored and (frozen_bytes is None or not _untied(shape)):
            casts += _table(shape)
    adapters = trained if lora_rank is not None else 0
    return TrainingMemory(
        weights=((parameters(plan, shape) + adapters) * weight_bytes - halved) // num_devices,
        gradients=trained * weight_bytes // num_devices,
        optimizer=trains.optimizer_bytes(optimizer, weight_bytes) // num_devices,
        activations=saved + max(logits, recomputed) + mixed * casts * activation_bytes,
        gathered=_gathered(plan, shape, activation_bytes) if num_devices > 1 else 0,
    )


@dataclass(frozen=True)
class _ElementBytes:
    """Bytes of a number in what is saved for the backward pass; `of_stream`: of hidden states and norms."""

    of_activations: int
    of_experts: int
    of_stream: int

    @property
    def mixed(self) -> bool:
        return self.of_stream > self.of_activations


@dataclass(frozen=True)
class _Kept:
    """What trains, by which follows what a layer keeps: everything, updates of its attention, or its W_c alone, and the
    queries and keys of some layers."""

    stage: int
    lora_rank: int | None
    sources: tuple[int, ...] = ()

    @property
    def everything(self) -> bool:
        return self.stage == 2 and self.lora_rank is None


def _layers(plan: LayerPlan, shape: ModelShape) -> list[tuple[LayerRow, LayerShape]]:
    return [(row, row.sized(layer)) for row, layer in zip(plan.rows, shape.layers, strict=True)]


def _first_kept(plan: LayerPlan, kept: _Kept) -> int:
    """The lowest layer through which gradients go."""
    return 0 if kept.stage == 2 else min((*plan.compensated, *kept.sources), default=len(plan.rows))


def _trained_map_weights(plan: LayerPlan, shape: ModelShape, kept: _Kept) -> int:
    """Weights of the queries and keys that train beside W_c."""
    return sum(map_weights(plan.rows[source], shape.layers[source]) for source in kept.sources)


def _matrices(plan: LayerPlan, shape: ModelShape) -> int:
    """Weights of the matrices that stay frozen under W_c: of all layers, and the output embedding if it is not tied."""
    layers = sum(_layer_matrices(row, layer) for row, layer in _layers(plan, shape))
    return layers + _untied(shape) * _table(shape)


def _table(shape: ModelShape) -> int:
    """Weights of one embedding."""
    return shape.vocab_size * shape.hidden_size


def _untied(shape: ModelShape) -> bool:
    """Whether the output embedding has weights of its own."""
    return shape.embedding >= 2 * _table(shape)


def _layer_matrices(row: LayerRow, layer: LayerShape) -> int:
    """Weights of a layer's projections and of its feed-forward that every token passes."""
    of_projection = {QUERY: layer.query, KEY: layer.key, VALUE: layer.value, OUTPUT: layer.output}
    return layer.feed_forward + sum(of_projection[projection] for projection in row.traits.projections)


def _trained(plan: LayerPlan, shape: ModelShape, kept: _Kept) -> TrainedWeights:
    compensations = sum(compensation_weights(row, shape) for row in plan.rows)
    if kept.stage == 1:
        return TrainedWeights(matrices=compensations + _trained_map_weights(plan, shape, kept))
    layers = _layers(plan, shape)
    if kept.lora_rank is not None:
        updates = kept.lora_rank * sum(_adapted_sizes(row, layer, shape) for row, layer in layers)
        return TrainedWeights(matrices=compensations + updates)
    experts = sum(layer.experts.parameters for _, layer in layers if layer.experts is not None)
    norms = sum(layer.attention_norms + layer.query_norm + layer.key_norm for _, layer in layers)
    matrices = parameters(plan, shape) - experts - norms - shape.embedding
    return TrainedWeights(matrices, experts, shape.embedding, norms)


def _adapted_sizes(row: LayerRow, layer: LayerShape, shape: ModelShape) -> int:
    """Inputs plus outputs of the attention projections a layer keeps."""
    sizes = projection_sizes(layer, shape)
    return sum(sum(sizes[projection]) for projection in row.traits.projections)


def _saved_bytes(plan: LayerPlan, shape: ModelShape, sizes: _ElementBytes, kept: _Kept, *, checkpointing: bool) -> int:
    """Per token: what autograd keeps of all layers, or with checkpointing what enters them and what they publish."""
    layers = _layers(plan, shape)[_first_kept(plan, kept) :]
    of_norm = sizes.of_stream + sizes.of_activations if kept.everything else 0
    head = shape.hidden_size * (NORM_BYTES + of_norm)
    if not checkpointing:
        return head + sum(_layer_bytes(row, layer, shape, sizes, kept) for row, layer in layers)
    published = sum(_published_elements(row.index, plan, shape) for row, _ in layers)
    return head + shape.hidden_size * len(layers) * sizes.of_stream + published * sizes.of_activations


def _largest_layer(plan: LayerPlan, shape: ModelShape, sizes: _ElementBytes) -> int:
    everything = _Kept(2, None)
    return max(_layer_bytes(row, layer, shape, sizes, everything) for row, layer in _layers(plan, shape))


def _layer_bytes(row: LayerRow, layer: LayerShape, shape: ModelShape, sizes: _ElementBytes, kept: _Kept) -> int:
    """Per token: norms (their float32 input, and where they train what they scale and give), attention, feed-forward.

    A frozen projection needs nothing of its input; a W_c reads what the norm gives, and so do updates. In mixed
    precision every product that trains keeps a cast of its input.
    """
    hidden, experts = shape.hidden_size, layer.experts
    if not row.traits.feed_forward:
        return row.compensated * hidden * sizes.of_activations  # what W_c reads, no norm before it
    norms = (layer.attention_norms + layer.other) // hidden
    readers = len(row.traits.projections & {QUERY, KEY, VALUE}) + row.compensated
    normalised = norms * sizes.of_stream if kept.everything else 0
    if kept.everything:
        inputs = readers + 2 if sizes.mixed else norms
    elif kept.lora_rank is not None:
        inputs = readers if sizes.mixed else min(readers, 1)
    elif row.index in kept.sources:
        inputs = 2 if sizes.mixed else 1
    else:
        inputs = int(row.compensated)
    # queries, keys and values as they are projected, and what enters W_o
    heads = layer.heads
    widths = {QUERY: heads.query_width, KEY: heads.key_width, VALUE: heads.value_width, OUTPUT: heads.output_width}
    attention = sum(widths[projection] for projection in row.traits.projections)
    router = experts.count * hidden if experts is not None else 0
    feed_forward = _gated_elements((layer.feed_forward - router) // (3 * hidden), trains=kept.everything)
    cross = 0  # queries and what enters W_o of the text, keys and values of a source as long
    if layer.cross is not None:
        cross = layer.cross.pair_width + layer.cross.cached_width
    elements = inputs * hidden + attention + cross + feed_forward
    routed = 0 if experts is None else _routed_bytes(experts, hidden, sizes.of_experts, trains=kept.everything)
    return hidden * norms * NORM_BYTES + hidden * normalised + elements * sizes.of_activations + routed


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
    read_from, heads = plan.read_from(index), plan.rows[index].sized(shape.layers[index]).heads
    of_map = (heads.query_width + heads.key_width) * (MAP in read_from)  # its queries and keys, for replay
    of_keys = (heads.key_width + heads.value_width) * (KEY_VALUE in read_from)
    return max(of_map, of_keys) + cross_map_width(index, plan, shape)


def _gathered(plan: LayerPlan, shape: ModelShape, element: int) -> int:
    """The embeddings, the layers in use, and the gradient of one of them before it is spread out."""
    rows = zip(plan.rows, shape.layers, strict=True)
    largest = max(layer_parameters(row, layer, shape) for row, layer in rows)
    return (shape.embedding + (GATHERED_LAYERS + 1) * largest) * element
