"""The Triton programs that make a tiled map and that multiply it with other values; `kept_tiles.py` starts them.

One program computes a row of tiles of one head. Exponents are to the base 2: x = s * log2(e).
"""

import triton
import triton.language as tl


@triton.jit
def source_kernel(
    query,
    key,
    value,
    output,
    tiles,
    maxima,
    lse,
    first_tiles,
    tile_starts,
    starts,
    sinks,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    o_batch,
    o_row,
    o_head,
    heads,
    group,
    queries,
    keys,
    first_position,
    num_tiles,
    scale,
    cap,
    window: tl.constexpr,
    has_starts: tl.constexpr,
    has_sinks: tl.constexpr,
    has_cap: tl.constexpr,
    stored_scale: tl.constexpr,
    precision: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    head_size: tl.constexpr,
    value_size: tl.constexpr,
    head_block: tl.constexpr,
    value_block: tl.constexpr,
):
    """Attention that keeps its tiles: P~ = exp(s - m) with m the largest score of the row up to this tile.

    m_t = max(m_{t-1}, max_c s_tc);  l = l e^{m_{t-1} - m_t} + sum_c P~_tc;  O = O e^{m_{t-1} - m_t} + P~_t V_t;
    output O / l, lse = m + log l. A sink is a score that has no value: m begins as it, l as 1.
    """
    block = tl.num_programs(0) - 1 - tl.program_id(0)  # the longest rows first
    pair = tl.program_id(1)  # of sequence and head
    batch, head = pair // heads, pair % heads
    row = block * rows + tl.arange(0, rows)
    column = tl.arange(0, columns)
    size, value_dim = tl.arange(0, head_block), tl.arange(0, value_block)
    in_rows, in_size, in_value = row < queries, size < head_size, value_dim < value_size
    batch_64, head_64, kv_head = batch.to(tl.int64), head.to(tl.int64), (head // group).to(tl.int64)

    q_rows = query + batch_64 * q_batch + head_64 * q_head + row.to(tl.int64)[:, None] * q_row
    q = tl.load(q_rows + size[None], mask=in_rows[:, None] & in_size[None], other=0.0)  # [rows, D]
    k_base = key + batch_64 * k_batch + kv_head * k_head
    v_base = value + batch_64 * v_batch + kv_head * v_head
    log2e: tl.constexpr = 1.4426950408889634
    if has_sinks:
        largest = tl.zeros([rows], tl.float32) + tl.load(sinks + head).to(tl.float32) * log2e
        total = tl.full([rows], 1.0, tl.float32)
    else:
        largest = tl.full([rows], float("-inf"), tl.float32)
        total = tl.zeros([rows], tl.float32)
    result = tl.zeros([rows, value_block], tl.float32)
    begin, end = tl.load(tile_starts + block), tl.load(tile_starts + block + 1)
    first = tl.load(first_tiles + block)
    start = 0
    if has_starts:
        start = tl.load(starts + batch)
    last_seen = first_position + row  # [rows]

    for tile in range(begin, end):
        place = (first + tile - begin) * columns + column  # [columns]
        in_keys = place < keys
        k_rows = k_base + place.to(tl.int64)[:, None] * k_row
        k = tl.load(k_rows + size[None], mask=in_keys[:, None] & in_size[None], other=0.0)  # [columns, D]
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale  # [rows, columns]
        if has_cap:
            # cap * tanh(s / cap), tanh(x) = 2 sigmoid(2 x) - 1
            scores = cap * (2.0 / (1.0 + tl.exp(-2.0 * scores / cap)) - 1.0)
        seen = (place[None] <= last_seen[:, None]) & in_keys[None]
        if window > 0:
            seen = seen & (place[None] > last_seen[:, None] - window)
        if has_starts:
            seen = seen & (place[None] >= start)
        scores = tl.where(seen, scores * log2e, float("-inf"))
        new = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)  # nothing seen so far: padding, or before the window
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(weights, 1)
        v_rows = v_base + place.to(tl.int64)[:, None] * v_row
        v = tl.load(v_rows + value_dim[None], mask=in_keys[:, None] & in_value[None], other=0.0)  # [columns, Dv]
        result = result * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
        largest = new
        slot = pair.to(tl.int64) * num_tiles + tile
        places = slot * (rows * columns) + tl.arange(0, rows)[:, None] * columns + column[None]
        tl.store(tiles + places, (weights * stored_scale).to(tiles.dtype.element_ty))
        tl.store(maxima + slot * rows + tl.arange(0, rows), finite)

    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    largest = tl.where(largest == float("-inf"), 0.0, largest)
    o_rows = output + batch_64 * o_batch + head_64 * o_head + row.to(tl.int64)[:, None] * o_row
    held = (result / total[:, None]).to(output.dtype.element_ty)
    tl.store(o_rows + value_dim[None], held, mask=in_rows[:, None] & in_value[None])
    tl.store(lse + pair.to(tl.int64) * queries + row, largest + tl.log2(total), mask=in_rows)


@triton.jit
def reader_kernel(
    tiles,
    maxima,
    lse,
    value,
    output,
    first_tiles,
    tile_starts,
    heads_from,
    v_batch,
    v_head,
    v_row,
    o_batch,
    o_row,
    o_head,
    heads,
    source_heads,
    group,
    queries,
    keys,
    num_tiles,
    aligned: tl.constexpr,
    stored_scale: tl.constexpr,
    precision: tl.constexpr,
    rows: tl.constexpr,
    columns: tl.constexpr,
    value_size: tl.constexpr,
    value_block: tl.constexpr,
):
    """The map times other values: O = sum_t (P~_t e^{m_t - lse}) V_t, no product of queries and keys, no softmax."""
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    pair = tl.program_id(1)
    batch, head = pair // heads, pair % heads
    source_head = head
    if aligned:
        source_head = tl.load(heads_from + head)
    source = (batch * source_heads + source_head).to(tl.int64)
    row = block * rows + tl.arange(0, rows)
    column, value_dim = tl.arange(0, columns), tl.arange(0, value_block)
    in_rows, in_value = row < queries, value_dim < value_size
    v_base = value + batch.to(tl.int64) * v_batch + (head // group).to(tl.int64) * v_head
    row_lse = tl.load(lse + source * queries + row, mask=in_rows, other=0.0)
    result = tl.zeros([rows, value_block], tl.float32)
    begin, end = tl.load(tile_starts + block), tl.load(tile_starts + block + 1)
    first = tl.load(first_tiles + block)
    for tile in range(begin, end):
        place = (first + tile - begin) * columns + column
        slot = source * num_tiles + tile
        places = slot * (rows * columns) + tl.arange(0, rows)[:, None] * columns + column[None]
        weights = tl.load(tiles + places).to(tl.float32)  # [rows, columns]
        tile_maximum = tl.load(maxima + slot * rows + tl.arange(0, rows))
        weights = weights * (tl.exp2(tile_maximum - row_lse) / stored_scale)[:, None]
        v_rows = v_base + place.to(tl.int64)[:, None] * v_row
        v = tl.load(v_rows + value_dim[None], mask=(place < keys)[:, None] & in_value[None], other=0.0)
        result += tl.dot(weights.to(v.dtype), v, input_precision=precision)
    o_rows = output + batch.to(tl.int64) * o_batch + head.to(tl.int64) * o_head + row.to(tl.int64)[:, None] * o_row
    tl.store(o_rows + value_dim[None], result.to(output.dtype.element_ty), mask=in_rows[:, None] & in_value[None])
