"""The cache under every plan: it holds what the plan lists and costs predict, and computes what no cache computes."""

from __future__ import annotations

import copy

import pytest
import torch
from tests.tiny_models import MODES, SATURATES, WINDOW, cases, converted, plan_of, shape, tokens
from transformers import Cache, DynamicCache, QuantizedCache
from transformers.cache_utils import Fp8QuantizedLayer

from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.caches.quantized_layers import value_only_quantized
from uniattn_pl.plan import costs

CLOSE = {"rtol": 0, "atol": 5e-5}
LENGTH, FIRST, PADDING = 10, 4, 3


def held(cache: Cache) -> list[tuple[bool, bool]]:
    """Per layer, whether keys and values are held."""
    states = [(layer.keys, layer.values) for layer in cache.layers]
    return [tuple(state is not None and state.numel() > 0 for state in pair) for pair in states]


def predicted_bytes(family: str, architecture: str, *, batch_size: int, length: int, bytes_per_element: int = 4) -> int:
    return costs.kv_cache_bytes(
        plan_of(family, architecture),
        shape(family),
        batch_size=batch_size,
        length=length,
        bytes_per_element=bytes_per_element,
    )


@cases(["mistral", "gemma2", "gemma3_text"], modes=True)  # without windows: tests/families/
@torch.no_grad()
def test_steps_and_padding_give_the_logits_of_one_forward(family: str, architecture: str, mode: str) -> None:
    """At every length, below the window, at it and above, the cache holds the predicted bytes and nothing else."""
    model, plan = converted(family, architecture, mode), plan_of(family, architecture)
    assert FIRST < WINDOW < LENGTH
    ids = tokens(2, LENGTH)
    whole = model(ids, use_cache=False).logits
    listed = [(row.caches_keys, row.caches_values) for row in plan.rows]
    cache, logits = DynamicCache(config=model.config), []
    for part in (ids[:, :FIRST], *ids[:, FIRST:].split(1, dim=1)):
        logits.append(model(part, past_key_values=cache, use_cache=True).logits)
        length = sum(piece.shape[1] for piece in logits)
        assert held(cache) == listed, f"after {length} tokens"
        predicted = predicted_bytes(family, architecture, batch_size=2, length=length)
        assert kv_cache_bytes(cache) == predicted, f"after {length} tokens"
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, **CLOSE)
    padded = torch.cat([tokens(1, PADDING, seed=2), ids[:1]], dim=1)
    batch = torch.cat([padded, tokens(1, LENGTH + PADDING, seed=3)])
    mask = torch.ones_like(batch)
    mask[0, :PADDING] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    left_padded = model(batch, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(left_padded[0, PADDING:], whole[0], **CLOSE)


@cases(modes=False)
def test_generate_leaves_the_predicted_bytes(family: str, architecture: str) -> None:
    model = converted(family, architecture)
    for dtype, new in ((torch.float32, 2), (torch.bfloat16, 6)):
        prompt = tokens(3, FIRST)
        output = model.to(dtype).generate(
            prompt, max_new_tokens=new, do_sample=False, pad_token_id=0, return_dict_in_generate=True
        )
        # The last token was never fed.
        length = output.sequences.shape[1] - 1
        assert length == FIRST + new - 1
        predicted = predicted_bytes(family, architecture, batch_size=3, length=length, bytes_per_element=dtype.itemsize)
        assert kv_cache_bytes(output.past_key_values) == predicted, f"{length} tokens in {dtype}"


def test_a_window_is_cheaper_and_a_global_source_makes_a_local_reader_keep_everything() -> None:
    """The byte counts above are about these: guards against plans that never reach a window."""

    def kept(architecture: str) -> int:
        return predicted_bytes("gemma2", architecture, batch_size=1, length=LENGTH) // (2 * 8 * 4)

    full, window = LENGTH, WINDOW - 1
    assert kept("uniattn") == 2 * (window + full) + full + full + 2 * (window + full)
    assert kept("uniattn_windowed") == 2 * (window + full) + (window + 2 * full) * 2 - full * 2 + 2 * full


@pytest.mark.parametrize("mode", MODES)
def test_the_modes_agree(mode: str) -> None:
    ids = tokens(2, LENGTH)
    with torch.no_grad():
        expected = converted("gemma3_text", "mixed", "auto")(ids, use_cache=False).logits
        found = converted("gemma3_text", "mixed", mode)(ids, use_cache=False).logits
    torch.testing.assert_close(found, expected, **CLOSE)


@torch.no_grad()
@pytest.mark.skipif(not SATURATES, reason="fp8 caches are NaN with this torch, of stock models too")
def test_a_quantised_cache_holds_values_alone_for_readers_of_a_map_and_quantises_them_as_it_does() -> None:
    """fp8, which needs no other package: a byte a number and a scale for each tensor; dropped layers hold nothing."""
    stock = Fp8QuantizedLayer()
    reader = value_only_quantized(Fp8QuantizedLayer())
    for length in (5, 1, 1):
        keys, values = torch.randn(2, 2, 2, length, 8).unbind()
        _, expected = stock.update(keys, values)
        nothing, held = reader.update(keys, values)
        assert torch.equal(held, expected)
        assert nothing.shape == expected.shape
    assert stock.get_seq_length() == reader.get_seq_length() == 7

    ids, more = tokens(1, LENGTH), tokens(1, 3, seed=5)
    for architecture in ("uniattn", "llmdrop"):
        model, plan = converted("llama", architecture), plan_of("llama", architecture)
        cache = QuantizedCache("fp8", model.config)
        model(ids, past_key_values=cache, use_cache=True)
        tensors = sum(row.caches_keys + row.caches_values for row in plan.rows)
        kept = predicted_bytes("llama", architecture, batch_size=1, length=LENGTH, bytes_per_element=1)
        assert kv_cache_bytes(cache) == kept + 4 * tensors
        copied = copy.deepcopy(cache)
        after = model(more, past_key_values=cache, use_cache=True).logits
        steps = [model(one, past_key_values=copied, use_cache=True).logits for one in more.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(steps, dim=1), after, **CLOSE)
        exact = model(torch.cat([ids, more], dim=1), use_cache=False).logits[:, LENGTH:]
        assert 0 < float((after - exact).abs().max()) < 0.1 * float(exact.abs().max())
