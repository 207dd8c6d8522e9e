"""Attention that keeps its map: against the formula, in memory that is used again, chunk by chunk, token by token."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import transformers.integrations.flex_attention as flex_integration
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.modeling.test_decoding import GREEDY, uncached_greedy
from tests.tiny_models import cases, converted, plan_of, stock, tokens
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from uniattn_pl.errors import UserError
from uniattn_pl.inference.prefill import prefill
from uniattn_pl.kernels import map_memory
from uniattn_pl.kernels.grouped import aligned_product, grouped_attention, masked_span
from uniattn_pl.kernels.map_memory import MapBuffers, automatic_chunk
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.caches.growing_layer import GrowingLayer
from uniattn_pl.modeling.caches.h2o_cache import H2OCache
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes, map_buffers
from uniattn_pl.modeling.caches.value_only_layers import ValueOnlyLayer
from uniattn_pl.modeling.conversion.convert import unmodified_copy

CLOSE = {"rtol": 0, "atol": 1e-4}
PADDING = 3


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 7), st.integers(0, 9)),
    st.sampled_from(["none", "causal", "padded", "additive", "nothing masked"]),
    st.sampled_from([None, 0.3]),
)
def test_the_output_and_the_map_are_those_of_the_formula(
    device: str, sizes: tuple[int, int, int, int, int], kind: str, scaling: float | None
) -> None:
    batch, groups, per_group, length, past = sizes
    total, size = past + length, 4
    generator = torch.Generator().manual_seed(sum(sizes))
    query = torch.randn(batch, groups * per_group, length, size, generator=generator).to(device)
    room = torch.randn(2, batch, groups, total + 5, size, generator=generator).to(device)
    key, value = room[0][..., :total, :], room[1][..., :total, :]
    causal = torch.ones(length, total, dtype=torch.bool, device=device).tril(past)
    mask: torch.Tensor | None = causal[None, None].repeat(batch, 1, 1, 1)
    if kind == "padded":
        assert mask is not None
        mask[0, ..., : min(2, past)] = False
    elif kind == "additive":
        mask = torch.where(mask, 0.0, torch.finfo(torch.float32).min)
    elif kind == "nothing masked":
        mask = torch.ones(batch, 1, length, total, dtype=torch.bool, device=device)
    elif kind == "none":
        # one query sees all keys
        mask, causal = None, torch.ones(length, total, dtype=torch.bool, device=device).tril(past * (length == 1))
    expected = causal if mask is None else mask
    repeated = [tensor.repeat_interleave(per_group, dim=1) for tensor in (key, value)]
    scores = query @ repeated[0].transpose(2, 3) * (size**-0.5 if scaling is None else scaling)
    scores = scores + expected if expected.dtype != torch.bool else scores.masked_fill(~expected, -1e30)
    weights = scores.softmax(-1)
    buffers = MapBuffers()
    for _ in range(2):  # the second time into memory full of the first
        buffers.begin_forward()
        output, attention_map = grouped_attention(
            query,
            key,
            value,
            mask,
            scaling=scaling,
            take=lambda shape, like: buffers.take(0, 0, shape, like),
            masked_span=masked_span,
        )
        torch.testing.assert_close(attention_map, weights, rtol=0, atol=1e-5)
        torch.testing.assert_close(output, (weights @ repeated[1]).transpose(1, 2), rtol=0, atol=1e-5)
    heads_from = tuple((3 * head + 1) % (groups * per_group) for head in range(groups * per_group))
    aligned = aligned_product(attention_map, heads_from, value)
    torch.testing.assert_close(aligned, (weights[:, heads_from] @ repeated[1]).transpose(1, 2), rtol=0, atol=1e-5)


@cases(modes=False)
@torch.no_grad()
def test_chunks_give_the_logits_and_the_cache_of_one_forward(family: str, architecture: str) -> None:
    model = converted(family, architecture)
    ids = tokens(2, 14)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1:]
    once = prefill(model, ids, mask, chunk_size=100)
    for chunk_size in (1, 4, 14):
        output = prefill(model, ids, mask, chunk_size=chunk_size)
        torch.testing.assert_close(output.logits, whole, **CLOSE)
        assert kv_cache_bytes(output.past_key_values) == kv_cache_bytes(once.past_key_values)
    half = prefill(model, ids[:, :7], mask[:, :7], chunk_size=3)
    rest = prefill(model, ids[:, 7:], mask, past_key_values=half.past_key_values, chunk_size=2)
    torch.testing.assert_close(rest.logits, whole, **CLOSE)


@cases(modes=False)
def test_generate_takes_long_prompts_in_chunks_by_itself(
    family: str, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(map_memory, "CHUNKS", {"cpu": 4})
    model, prompt = converted(family, architecture), tokens(1, 13)
    lengths: list[int] = []
    decoder = model.get_decoder()
    decoder.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    expected = uncached_greedy(model, prompt)
    lengths.clear()
    assert torch.equal(model.generate(prompt, **GREEDY), expected)
    assert lengths == [4, 4, 4, 1, 1, 1, 1]
    lengths.clear()
    model.generate(prompt, prefill_chunk_size=8, **GREEDY)
    assert lengths[:2] == [8, 5]
    lengths.clear()
    model.generate(prompt, use_cache=False, **GREEDY)
    assert lengths[0] == 13


def test_a_chunk_keeps_the_map_to_its_limit() -> None:
    model = stock("llama")

    def chunk(length: int, batch_size: int = 1) -> int:
        return automatic_chunk(model.config, model.device, torch.float32, batch_size=batch_size, length=length)

    heads = model.config.num_attention_heads
    assert chunk(1000) == 256
    for length, batch_size in ((100_000, 1), (8192, 16), (30_000, 4)):
        found = chunk(length, batch_size)
        assert found * batch_size * heads * length * 4 <= 2**26 < 2 * found * batch_size * heads * length * 4
    model.config.map_memory_mib = 1
    assert chunk(8192) == map_memory.SMALLEST_CHUNK
    assert chunk(1024) == 64


@pytest.mark.parametrize(
    ("backend", "reuse_mode", "observed", "whole"),
    [
        ("sdpa", "auto", False, True),
        ("sdpa", "replay", False, True),
        ("sdpa", "materialise", False, False),
        ("sdpa", "auto", True, False),
        ("eager", "auto", False, False),
    ],
)
def test_an_accelerator_takes_a_prompt_whole_unless_maps_are_kept(
    backend: str, reuse_mode: str, observed: bool, whole: bool
) -> None:
    model = converted("llama", "uniattn")
    model.set_attn_implementation(backend)
    model.config.reuse_mode = reuse_mode
    cuda = torch.device("cuda")
    found = automatic_chunk(model.config, cuda, torch.bfloat16, batch_size=1, length=2**14, observed=observed)
    assert (found >= 2**14) == whole
    assert whole or found <= map_memory.CHUNK_ELSEWHERE


class Calls(TorchDispatchMode):
    """Counts the operators that run, and the bytes of what they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names[func.__name__.split(".")[0]] += 1
        if isinstance(result, torch.Tensor) and not func.is_view and "out" not in (kwargs or {}):
            self.largest = max(self.largest, result.numel())
        return result


@torch.no_grad()
def test_decoding_computes_one_softmax_per_map_and_allocates_nothing_that_grows() -> None:
    model = converted("llama", "uniattn")
    plan = plan_of("llama", "uniattn")
    cache = prefill(model, tokens(1, 40)).past_key_values
    step = {"past_key_values": cache, "use_cache": True}
    model(tokens(1, 1), **step)
    rooms = [layer._room["values"].data_ptr() for layer in cache.layers]
    memory = [buffer.data_ptr() for buffer in map_buffers(cache)._buffers]
    with Calls() as calls:
        for _ in range(5):
            model(tokens(1, 1), **step)
    reused = sum(row.role == "reuse" for row in plan.rows)
    assert calls.names["_softmax"] + calls.names["softmax"] == 5 * (len(plan.rows) - reused)
    assert calls.names["bmm"] == 5 * (2 * (len(plan.rows) - reused) + reused)
    assert calls.names["cat"] <= 5 * (2 * (len(plan.rows) - reused) + reused), "rotary only"
    assert [layer._room["values"].data_ptr() for layer in cache.layers] == rooms
    assert [buffer.data_ptr() for buffer in map_buffers(cache)._buffers] == memory
    assert calls.largest <= 64, "hidden states and logits, nothing as long as the context"


@torch.no_grad()
def test_maps_that_do_not_overlap_use_the_same_memory() -> None:
    for architecture, expected in (("uniattn", 1), ("mixed", 2)):
        cache = prefill(converted("llama", architecture), tokens(2, 20), chunk_size=5).past_key_values
        assert len(map_buffers(cache)._buffers) == expected
    buffers = MapBuffers()
    buffers.begin_forward()
    like = torch.zeros(1)
    first = buffers.take(0, 2, (4,), like)
    second = buffers.take(1, 1, (4,), like)
    third = buffers.take(2, 2, (4,), like)
    assert first.data_ptr() != second.data_ptr()
    assert third.data_ptr() == second.data_ptr()
    assert buffers.take(3, 3, (2, 2), like).data_ptr() == first.data_ptr()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(1, 40)),
        st.tuples(st.just("crop"), st.integers(1, 5)),
        st.tuples(st.just("select"), st.integers(0, 1)),
        st.tuples(st.just("repeat"), st.just(2)),
        st.tuples(st.just("copy"), st.just(0)),
        st.tuples(st.just("reset"), st.just(0)),
    ),
    max_size=12,
)


def test_a_growing_layer_has_little_to_spare_and_copies_seldom() -> None:
    """As much to spare as a plan saves would leave no room for more sequences; the stock one copies for every token."""
    layer, copies = GrowingLayer(), 0
    layer.update(*torch.zeros(2, 1, 1, 6400, 1))
    for _ in range(640):
        before = layer.keys.untyped_storage().data_ptr()
        layer.update(*torch.zeros(2, 1, 1, 1, 1))
        copies += layer.keys.untyped_storage().data_ptr() != before
        assert layer.keys.untyped_storage().nbytes() <= layer.keys.nbytes * (1 + 1 / 64)
    assert copies <= 640 // 100


@settings(max_examples=80, deadline=None)
@given(STEPS, st.booleans())
def test_a_growing_layer_holds_what_the_stock_one_does(steps: list[tuple[str, int]], values_only: bool) -> None:
    layer: Any = ValueOnlyLayer() if values_only else GrowingLayer()
    expected: Any = DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    left_behind: list[tuple[torch.Tensor, torch.Tensor]] = []
    for number, (what, amount) in enumerate(steps):
        held = expected.values
        if what == "append":
            batch = held.shape[0] if expected.is_initialized else 2
            states = torch.randn(batch, 2, amount, 3, generator=generator)
            with torch.inference_mode(number % 2 == 0):
                layer.update(states[..., :0] if values_only else states, states)
            expected.update(states, states)
        elif what == "reset":
            layer.reset()
            expected.reset()
        elif what == "copy":
            if layer.values is not None:
                left_behind.append((layer.values, layer.values.clone()))
            layer = copy.deepcopy(layer)
        elif held is None or held.shape[0] > 8 or held.shape[-2] <= amount:
            continue
        elif what == "crop":
            layer.crop(-amount)
            expected.crop(-amount)
        elif what == "select":
            chosen = torch.tensor([amount, 0])
            layer.batch_select_indices(chosen)
            expected.batch_select_indices(chosen)
        else:
            layer.batch_repeat_interleave(amount)
            expected.batch_repeat_interleave(amount)
        assert layer.get_seq_length() == expected.get_seq_length()
        if expected.is_initialized:
            assert torch.equal(layer.values, expected.values)
            assert layer.keys.shape[-1] == 0 or torch.equal(layer.keys, expected.keys)
    assert all(torch.equal(kept, was) for kept, was in left_behind), "a copy shares no memory"


@torch.no_grad()
def test_a_cache_from_inference_mode_can_be_continued_outside() -> None:
    model, ids = converted("llama", "uniattn"), tokens(1, 9)
    expected = model(ids, use_cache=False).logits[:, -1:]
    with torch.inference_mode():
        cache = prefill(model, ids[:, :6]).past_key_values
    torch.testing.assert_close(prefill(model, ids[:, 6:], past_key_values=cache).logits, expected, **CLOSE)


@torch.no_grad()
def test_an_unmodified_copy_computes_what_the_stock_model_does() -> None:
    for family in ("llama", "gemma3_text"):
        model, ids = stock(family), tokens(2, 12)
        copied = unmodified_copy(model)
        assert copied.layer_plan.operated == ()
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(copied(ids, use_cache=False).logits, expected, **CLOSE)
        output = prefill(copied, ids, chunk_size=5)
        torch.testing.assert_close(output.logits, expected[:, -1:], **CLOSE)
        stock_cache = DynamicCache(config=model.config)
        model(ids, past_key_values=stock_cache, use_cache=True)
        assert kv_cache_bytes(output.past_key_values) == kv_cache_bytes(stock_cache)
        assert model.config.model_type == family


@torch.no_grad()
def test_training_and_gradients_do_not_touch_shared_memory() -> None:
    model, ids = converted("llama", "uniattn", "materialise"), tokens(2, 9)
    expected = model(ids, use_cache=False).logits
    with torch.enable_grad():
        logits = model(ids).logits
        logits.sum().backward()
    torch.testing.assert_close(logits.detach(), expected, **CLOSE)
    assert model.get_decoder().layers[1].self_attn.q_proj.weight.grad.abs().sum() > 0


def test_what_prefill_cannot_do_is_named() -> None:
    model = stock("llama")
    with pytest.raises(UserError, match="chunk_size must be at least 1, got 0"):
        prefill(model, tokens(1, 3), chunk_size=0)
    with pytest.raises(UserError, match="the prompt is empty"):
        prefill(model, tokens(1, 0))


def test_a_mask_is_never_taken_for_another_one() -> None:
    """Masks that live for one layer only: the next one may lie where the last one did."""
    state = Publications()
    for first in range(1, 40):
        mask = torch.ones(1, 1, 4, 40, dtype=torch.bool)
        mask[..., first:] = False
        assert state.masked_span(mask) == (first, 40)
        del mask


@pytest.mark.parametrize("architecture", ["uniattn", "cla"])
@torch.no_grad()
def test_flex_attention_replays_the_map(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers calls it, but not compiled: its kernels for the CPU are not what is tested."""
    monkeypatch.setattr(
        flex_integration, "compile_friendly_flex_attention", lambda *args, training, **kw: flex_attention(*args, **kw)
    )
    model, ids = converted("llama", architecture), tokens(2, 12)
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1:]
    model.set_attn_implementation("flex_attention")
    assert model.config._attn_implementation == "uniattn_flex_attention"
    found = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(prefill(model, ids, mask, chunk_size=7).logits, expected, **CLOSE)
    with pytest.raises(UserError, match="H2O sums attention maps, which flex_attention does not give"):
        H2OCache(model, 0.5)
