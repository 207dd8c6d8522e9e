"""The Triton programs of a decoding step: one query per sequence over a long cache, which is split among programs.

Exponents are to the base 2: x = s * log2(e). A program serves the G = H / Hkv query heads of one key head.
"""

import triton
import triton.language as tl


@triton.jit
def row_source_kernel(
    query,
    key,
    value,
    mask,
    logits,
    partial,
    maxima,
    totals,
    q_batch,
    q_head,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    m_batch,
    m_head,
    m_row,
    kv_heads,
    keys,
    chunk,
    splits,
    scale,
    cap,
    has_mask: tl.constexpr,
    has_cap: tl.constexpr,
    precision: tl.constexpr,
    group: tl.constexpr,
    group_block: tl.constexpr,
    columns: tl.constexpr,
    head_size: tl.constexpr,
    value_size: tl.constexpr,
    head_block: tl.constexpr,
    value_block: tl.constexpr,
):
    """Scores of one part of the cache, kept, and the part's output: sum exp(s - m) V, m and sum exp(s - m)."""
    pair, split = tl.program_id(0), tl.program_id(1)  # of sequence and key head
    batch, kv_head = (pair // kv_heads).to(tl.int64), (pair % kv_heads).to(tl.int64)
    member = tl.arange(0, group_block)  # of the group
    column = tl.arange(0, columns)
    size, value_dim = tl.arange(0, head_block), tl.arange(0, value_block)
    in_group, in_size, in_value = member < group, size < head_size, value_dim < value_size
    head = kv_head * group + member  # [G]
    q_rows = query + batch * q_batch + head[:, None] * q_head
    q = tl.load(q_rows + size[None], mask=in_group[:, None] & in_size[None], other=0.0)  # [G, D]
    k_base = key + batch * k_batch + kv_head * k_head
    v_base = value + batch * v_batch + kv_head * v_head
    m_base = mask
    if has_mask:
        m_base = mask + batch * m_batch + kv_head * m_head
    log2e: tl.constexpr = 1.4426950408889634
    largest = tl.full([group_block], float("-inf"), tl.float32)
    total = tl.zeros([group_block], tl.float32)
    result = tl.zeros([group_block, value_block], tl.float32)
    head_row = batch * kv_heads * group + head  # of [B * H]
    stop = tl.minimum(split * chunk + chunk, keys)
    for begin in range(split * chunk, stop, columns):
        place = begin + column
        seen = place < keys
        if has_mask:
            seen = tl.load(m_base + place.to(tl.int64) * m_row, mask=seen, other=0) != 0
        # Nothing of what is masked is read: a static cache costs what is in it.
        k_rows = k_base + place.to(tl.int64)[:, None] * k_row
        k = tl.load(k_rows + size[None], mask=seen[:, None] & in_size[None], other=0.0)  # [columns, D]
        scores = tl.dot(q, tl.trans(k), input_precision=precision) * scale  # [G, columns]
        if has_cap:
            scores = cap * (2.0 / (1.0 + tl.exp(-2.0 * scores / cap)) - 1.0)
        scores = tl.where(seen[None], scores * log2e, float("-inf"))
        kept = in_group[:, None] & (place < keys)[None]
        tl.store(logits + head_row[:, None] * keys + place[None], scores, mask=kept)
        new = tl.maximum(largest, tl.max(scores, 1))
        finite = tl.where(new == float("-inf"), 0.0, new)
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(weights, 1)
        v_rows = v_base + place.to(tl.int64)[:, None] * v_row
        v = tl.load(v_rows + value_dim[None], mask=seen[:, None] & in_value[None], other=0.0)
        result = result * shrink[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=precision)
        largest = new
    slot = head_row * splits + split
    tl.store(maxima + slot, largest, mask=in_group)
    tl.store(totals + slot, total, mask=in_group)
    places = partial + slot[:, None] * value_size + value_dim[None]
    tl.store(places, result, mask=in_group[:, None] & in_value[None])


@triton.jit
def row_reader_kernel(
    logits,
    lse,
    value,
    heads_from,
    partial,
    v_batch,
    v_head,
    v_row,
    kv_heads,
    source_heads,
    keys,
    chunk,
    splits,
    aligned: tl.constexpr,
    precision: tl.constexpr,
    group: tl.constexpr,
    group_block: tl.constexpr,
    columns: tl.constexpr,
    value_size: tl.constexpr,
    value_block: tl.constexpr,
):
    """One part of sum exp(s - lse) V, from scores that a source kept; no key is read."""
    pair, split = tl.program_id(0), tl.program_id(1)
    batch, kv_head = (pair // kv_heads).to(tl.int64), (pair % kv_heads).to(tl.int64)
    member, column, value_dim = tl.arange(0, group_block), tl.arange(0, columns), tl.arange(0, value_block)
    in_group, in_value = member < group, value_dim < value_size
    head = kv_head * group + member
    source_head = head
    if aligned:
        source_head = tl.load(heads_from + head, mask=in_group, other=0).to(tl.int64)
    source_row = batch * source_heads + source_head
    row_lse = tl.load(lse + source_row, mask=in_group, other=0.0)
    v_base = value + batch * v_batch + kv_head * v_head
    result = tl.zeros([group_block, value_block], tl.float32)
    stop = tl.minimum(split * chunk + chunk, keys)
    for begin in range(split * chunk, stop, columns):
        place = begin + column
        kept = in_group[:, None] & (place < keys)[None]
        scores = tl.load(logits + source_row[:, None] * keys + place[None], mask=kept, other=float("-inf"))
        weights = tl.exp2(scores - row_lse[:, None])  # [G, columns]
        seen = tl.max(scores, 0) > float("-inf")
        v_rows = v_base + place.to(tl.int64)[:, None] * v_row
        v = tl.load(v_rows + value_dim[None], mask=seen[:, None] & in_value[None], other=0.0)
        result += tl.dot(weights.to(v.dtype), v, input_precision=precision)
    slot = (batch * kv_heads * group + head) * splits + split
    places = partial + slot[:, None] * value_size + value_dim[None]
    tl.store(places, result, mask=in_group[:, None] & in_value[None])


@triton.jit
def combine_kernel(
    partial,
    maxima,
    totals,
    sinks,
    output,
    lse,
    heads,
    splits,
    weighted: tl.constexpr,
    has_sinks: tl.constexpr,
    split_block: tl.constexpr,
    value_size: tl.constexpr,
    value_block: tl.constexpr,
):
    """The parts of one row: O = sum_i e^{m_i - m} O_i / l with l = sum_i e^{m_i - m} l_i; a reader's just add up."""
    row = tl.program_id(0).to(tl.int64)  # of [B * H]
    part, value_dim = tl.arange(0, split_block), tl.arange(0, value_block)
    in_parts, in_value = part < splits, value_dim < value_size
    places = partial + (row * splits + part)[:, None] * value_size + value_dim[None]
    held = tl.load(places, mask=in_parts[:, None] & in_value[None], other=0.0)  # [splits, Dv]
    if weighted:
        part_maxima = tl.load(maxima + row * splits + part, mask=in_parts, other=float("-inf"))
        part_totals = tl.load(totals + row * splits + part, mask=in_parts, other=0.0)
        largest = tl.max(part_maxima, 0)
        sink = float("-inf")
        if has_sinks:
            sink = tl.load(sinks + row % heads).to(tl.float32) * 1.4426950408889634
            largest = tl.maximum(largest, sink)
        largest = tl.where(largest == float("-inf"), 0.0, largest)
        weights = tl.exp2(part_maxima - largest)
        total = tl.sum(weights * part_totals, 0)
        if has_sinks:
            total += tl.exp2(sink - largest)
        total = tl.where(total == 0.0, 1.0, total)
        held = held * weights[:, None] / total
        tl.store(lse + row, largest + tl.log2(total))
    result = tl.sum(held, 0)
    tl.store(output + row * value_size + value_dim, result.to(output.dtype.element_ty), mask=in_value)
