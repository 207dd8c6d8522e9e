"""What a plan costs: exact cache bytes, parameters and matrix-product FLOPs (training memory: `training_memory.py`).

All are pure functions of (plan, shape, batch, length). FLOPs count a multiply-add as two and matrix
products only; softmax, norms and activations are left out, as in the usual 2 x parameters x tokens. Of routed experts
parameters count all, FLOPs those that serve a token, and bytes those that a batch is expected to read
(`plan.shape.Experts.read`).

Of an encoder-decoder model the prompt is what its encoder reads, once; a plan changes the decoder, whose
cross-attention holds keys and values of every token of the source, or values alone where it uses another's map.

Symbols: B batch, L prompt tokens, S cached tokens, H query heads, Hkv key and value heads, D head size, Dv size of a
value (D in most families), d hidden size, w window with its sinks, V vocabulary.
"""

from __future__ import annotations

from uniattn_pl.plan.layer_plan import LayerPlan
from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.roles import KEY, KEYS, OUTPUT, QUERY, VALUE, VALUES
from uniattn_pl.plan.shape import LayerShape, ModelShape

FLOAT32_BYTES = 4
CACHE_LENGTH = 512  # tokens at which a fit, an evaluation and a sweep count the cache


def kv_cache_bytes(
    plan: LayerPlan,
    shape: ModelShape,
    *,
    batch_size: int,
    length: int,
    bytes_per_element: int,
    source_length: int | None = None,
) -> int:
    """Bytes the cache holds after `length` tokens: K and V of full layers, V of reuse layers, windows included.

    A window of w tokens keeps w - 1 of them, as transformers' sliding cache layers do, and all its sinks; of merged
    heads fewer are kept. Cross-attention keeps K and V of the source's tokens, by default as many as the text's.
    """
    # sum over layers of (Hkv * D of keys + Hkv * Dv of values) * min(S, w - 1) * B * bytes
    source = length if source_length is None else source_length
    total = _cross_width(plan, shape) * source
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        window = plan.window(row.index, shape)
        kept = length if window is None else min(length, window - 1)
        heads = row.sized(layer).heads
        widths = {KEYS: heads.cached_key_width, VALUES: heads.cached_value_width}
        total += sum(widths[part] for part in row.traits.caches) * kept
    return total * batch_size * bytes_per_element


def _cross_width(plan: LayerPlan, shape: ModelShape) -> int:
    """Numbers per token of a source that the cross-attention of all layers keeps."""
    crosses = (row.sized(layer).cross for row, layer in zip(plan.rows, shape.layers, strict=True))
    return sum(cross.cached_width for cross in crosses if cross is not None)


def cross_map_width(index: int, plan: LayerPlan, shape: ModelShape) -> int:
    """Numbers per token that a layer gives those that use the map of its cross-attention: queries of the text, and keys
    of a source as long."""
    cross = shape.layers[index].cross
    return 0 if cross is None or not plan.cross_readers(index) else cross.heads.query_width + cross.heads.key_width


def state_bytes(plan: LayerPlan, shape: ModelShape, *, batch_size: int, bytes_per_element: int) -> int:
    """Bytes that recurrences and convolutions keep, however long the text is; counted apart from keys and values."""
    layers = [row.sized(layer) for row, layer in zip(plan.rows, shape.layers, strict=True)]
    return batch_size * sum(layer.state * bytes_per_element + layer.wide_state * FLOAT32_BYTES for layer in layers)


def kv_retain_rate(plan: LayerPlan, shape: ModelShape, *, length: int) -> float:
    """Cache bytes relative to the unmodified model's (the paper's "KV Cache" column), between 0 and 1 (or above,
    where a windowed layer adopts the unlimited map of its source)."""
    unmodified = LayerPlan.stock(shape)
    sizes = [kv_cache_bytes(p, shape, batch_size=1, length=length, bytes_per_element=1) for p in (plan, unmodified)]
    return sizes[0] / sizes[1]


def parameters(plan: LayerPlan, shape: ModelShape) -> int:
    """Parameters of the converted model, W_c included, tied embeddings once."""
    in_layers = sum(layer_parameters(row, layer, shape) for row, layer in zip(plan.rows, shape.layers, strict=True))
    return shape.embedding + in_layers + encoder_parameters(shape)


def encoder_parameters(shape: ModelShape) -> int:
    """Of the encoder beside the decoder; 0 without one."""
    return 0 if shape.encoder is None else parameters(LayerPlan.unmodified(shape.encoder.num_layers), shape.encoder)


def active_parameters(plan: LayerPlan, shape: ModelShape) -> int:
    """Parameters that compute for one token: all, but of routed experts only those that serve it."""
    return parameters(plan, shape) - _unread_experts(plan, shape, 1)


def layer_parameters(row: LayerRow, layer: LayerShape, shape: ModelShape) -> int:
    """Parameters of one decoder layer under its row of a plan."""
    layer = row.sized(layer)
    of_projection = {
        QUERY: layer.query + layer.query_norm,
        KEY: layer.key + layer.key_norm,
        VALUE: layer.value,
        OUTPUT: layer.output,
    }
    # feed-forward + other + kept of (W_q, W_k, W_v, W_o with their norms) + norms that the attention alone reads + W_c
    attention = sum(of_projection[projection] for projection in row.traits.projections) + _common(row, layer)
    norms = layer.attention_norms if row.reads_stream else 0
    experts = layer.experts.parameters if layer.experts is not None else 0
    cross = layer.cross.of_text + layer.cross.of_source if layer.cross is not None else 0
    return layer.feed_forward + experts + layer.other + attention + norms + cross + compensation_weights(row, shape)


def _common(row: LayerRow, layer: LayerShape) -> int:
    """Parameters that a layer keeps for several projections: of a latent, and of a gate on its output."""
    kept = row.traits.projections
    return layer.latent * bool(kept & {KEY, VALUE}) + layer.gate * (OUTPUT in kept)


def compensation_weights(row: LayerRow, shape: ModelShape) -> int:
    """Elements of a layer's W_c, by where it reads and adds; 0 without one."""
    if row.compensation is None:
        return 0
    return row.compensation.weights(shape.layers[row.index].heads, shape.hidden_size)


def map_weights(row: LayerRow, layer: LayerShape) -> int:
    """Weights of its own by which a layer makes the queries and keys of its map, norms among them."""
    sized, own = row.sized(layer), row.traits.projections
    return (sized.query + sized.query_norm) * (QUERY in own) + (sized.key + sized.key_norm) * (KEY in own)


def prefill_flops(plan: LayerPlan, shape: ModelShape, *, batch_size: int, length: int) -> int:
    """FLOPs of one forward over `length` prompt tokens, with logits of the last position only (as for TTFT).

    Attention counts the causal (and windowed) query-key pairs only; reuse layers skip QK^T. Beside an encoder, which
    reads the prompt, the decoder runs one token.
    """
    if shape.encoder is not None:
        return _encoder_flops(plan, shape, batch_size=batch_size, length=length) + decode_flops(
            plan, shape, batch_size=batch_size, length=1, source_length=length
        )
    # B * (L * sum of 2 * weights + sum of pairs(L, w) * 2 * (H * D of Q K^T + H * Dv of map x V) + 2 * d * V)
    linear = sum(linear_flops(row, layer, shape) for row, layer in zip(plan.rows, shape.layers, strict=True))
    attention = sum(
        _pair_flops(row, layer) * query_key_pairs(length, plan.window(row.index, shape))
        for row, layer in zip(plan.rows, shape.layers, strict=True)
    )
    return batch_size * (linear * length + attention + 2 * shape.hidden_size * shape.vocab_size)


def _encoder_flops(plan: LayerPlan, shape: ModelShape, *, batch_size: int, length: int) -> int:
    """FLOPs of reading a source, all of whose tokens see each other, and of its keys and values for every layer."""
    encoder = shape.encoder
    assert encoder is not None
    pairs = 0
    unmodified = LayerPlan.unmodified(encoder.num_layers)
    linear = sum(linear_flops(row, layer, encoder) for row, layer in zip(unmodified.rows, encoder.layers, strict=True))
    for row, layer in zip(unmodified.rows, encoder.layers, strict=True):
        pairs += _pair_flops(row, layer) * length * (length if layer.window is None else min(length, layer.window))
    crosses = (row.sized(layer).cross for row, layer in zip(plan.rows, shape.layers, strict=True))
    linear += 2 * sum(cross.of_source for cross in crosses if cross is not None)
    return batch_size * (linear * length + pairs)


def decode_flops(
    plan: LayerPlan, shape: ModelShape, *, batch_size: int, length: int, source_length: int | None = None
) -> int:
    """FLOPs of generating one token when `length` tokens (the new one included) are attended to.

    Cross-attention attends to `source_length` besides, by default as many.
    """
    source = length if source_length is None else source_length
    # B * (sum of 2 * weights + sum of min(S, w) * 2 * (H * D of Q K^T + H * Dv of map x V) + 2 * d * V)
    total = 2 * shape.hidden_size * shape.vocab_size
    for row, layer in zip(plan.rows, shape.layers, strict=True):
        window = plan.window(row.index, shape)
        total += linear_flops(row, layer, shape)
        total += _pair_flops(row, layer) * (length if window is None else min(length, window))
        cross = row.sized(layer).cross
        total += 0 if cross is None else 2 * cross.pair_width * source
    return batch_size * total


def decode_bytes(plan: LayerPlan, shape: ModelShape, *, batch_size: int, length: int, bytes_per_element: int) -> int:
    """Bytes read to generate one token with `length` tokens in the cache: every weight once, and the whole cache.

    Of routed experts, those that the batch's tokens are expected to need (`plan.shape.Experts.read`). Of an input
    embedding that is not also the output one, only a row per sequence is read, which is left out. An encoder, and W_k
    and W_v of cross-attention, are not read again.
    """
    table = shape.vocab_size * shape.hidden_size  # [V, d]
    untied = shape.embedding >= 2 * table
    crosses = (row.sized(layer).cross for row, layer in zip(plan.rows, shape.layers, strict=True))
    unread = encoder_parameters(shape) + sum(cross.of_source for cross in crosses if cross is not None)
    weights = parameters(plan, shape) - untied * table - _unread_experts(plan, shape, batch_size) - unread
    cache = kv_cache_bytes(plan, shape, batch_size=batch_size, length=length, bytes_per_element=bytes_per_element)
    states = state_bytes(plan, shape, batch_size=batch_size, bytes_per_element=bytes_per_element)
    return weights * bytes_per_element + cache + states


def _unread_experts(plan: LayerPlan, shape: ModelShape, tokens: int) -> int:
    """Parameters of routed experts that serve none of `tokens` tokens, as expected."""
    layers = (row.sized(layer) for row, layer in zip(plan.rows, shape.layers, strict=True))
    routed = (layer.experts for layer in layers if layer.experts is not None)
    return round(sum(experts.parameters - experts.read(tokens) for experts in routed))


def projection_sizes(layer: LayerShape, shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Projection -> (inputs, outputs): W_q [d, H * D], W_k [d, Hkv * D], W_v [d, Hkv * Dv], W_o [H * Dv, d].

    Those of a latent attention are made in two steps: inputs are what one product of as many weights would have.
    """
    hidden, heads = shape.hidden_size, layer.heads
    if heads.latent:
        sizes = {QUERY: (layer.query, heads.query_width), KEY: (layer.key, heads.key_width)}
        sizes |= {VALUE: (layer.value, heads.value_width), OUTPUT: (layer.output, hidden)}
        return {projection: (weights // width, width) for projection, (weights, width) in sizes.items()}
    return {
        QUERY: (hidden, heads.query_width),
        KEY: (hidden, heads.key_width),
        VALUE: (hidden, heads.value_width),
        OUTPUT: (heads.output_width, hidden),
    }


def linear_flops(row: LayerRow, layer: LayerShape, shape: ModelShape) -> int:
    """FLOPs per token of the projections a layer keeps, its feed-forward and its W_c: two per weight."""
    layer = row.sized(layer)
    sizes = projection_sizes(layer, shape)
    projections = sum(sizes[projection][0] * sizes[projection][1] for projection in row.traits.projections)
    experts = layer.experts.per_token * layer.experts.matrices if layer.experts is not None else 0
    cross = layer.cross.of_text if layer.cross is not None else 0
    inside = projections + _common(row, layer) + cross
    return 2 * (layer.feed_forward + experts + inside + compensation_weights(row, shape))


def _pair_flops(row: LayerRow, layer: LayerShape) -> int:
    """FLOPs per query-key pair: QK^T where the map is computed, map x V wherever there is attention."""
    products = row.traits.products  # map x V is the one that a layer which reads its map is left with
    return 2 * ((products > 1) * layer.heads.query_width + (products > 0) * layer.heads.output_width)


def query_key_pairs(length: int, window: int | None) -> int:
    """Query-key pairs of a causal (windowed) attention over `length` tokens: w (w + 1) / 2 + (L - w) w."""
    w = length if window is None else min(window, length)
    return w * (w + 1) // 2 + (length - w) * w
