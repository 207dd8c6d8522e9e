"""A row in a pack is trained exactly as the row alone."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import (
    ARCHITECTURES,
    DISTINCT,
    EAGER_ONLY,
    MODES,
    UNMODIFIED,
    converted,
    shape,
    stock,
    with_random_compensations,
)
from transformers import AutoModelForCausalLM

from uniattn_pl.data import Collator, EncodedRows, PackCollator, PackedRows, ScoredSpans, pack_rows
from uniattn_pl.losses.response_loss import ScoredTokens, logits_at, summed_response_loss
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

PLANS: dict[str, Any] = {"unmodified": lambda _: UNMODIFIED} | {
    name: ARCHITECTURES[name] for name in ("uniattn", "uniattn_windowed", "cla", "llmdrop")
}
# Tokens and prompt tokens; longer than the sliding windows, one of a prompt of BOS alone, one of a single token.
LENGTHS, PROMPTS = (13, 9, 11, 2, 8, 1), (5, 1, 8, 1, 3, 0)
EARLIER = {0: ((1, 3),), 2: ((0, 2), (4, 6))}  # earlier answers of chats, which are learned, too
MAX_LENGTH = 26


def rows(seed: int = 0) -> EncodedRows:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 64, (sum(LENGTHS),), generator=generator, dtype=torch.int32)
    spans = [span for row, end in enumerate(LENGTHS) for span in (*EARLIER.get(row, ()), (PROMPTS[row], end))]
    counts = torch.tensor([1 + len(EARLIER.get(row, ())) for row in range(len(LENGTHS))], dtype=torch.int32)
    return EncodedRows(tokens, torch.tensor(LENGTHS), ScoredSpans(torch.tensor(spans, dtype=torch.int32), counts))


def packed(encoded: EncodedRows) -> dict[str, torch.Tensor]:
    packs = PackedRows(encoded, MAX_LENGTH, seed=0)
    batch = PackCollator(pad_id=0)([packs[index] for index in range(len(packs))])
    assert len(packs) == 2
    assert int(batch["num_tokens"]) == sum(LENGTHS) < batch["input_ids"].numel()  # one pack ends in padding
    return batch


def alone(encoded: EncodedRows, row: int) -> dict[str, torch.Tensor]:
    return Collator(pad_id=0)([encoded[row]])


def places(batch: dict[str, torch.Tensor]) -> dict[int, slice]:
    """Where each row lies in the flattened batch, from its positions."""
    found = {}
    for pack in range(len(batch["rows"])):
        starts = (batch["position_ids"][pack] == 0).nonzero().flatten().tolist()
        for row, start in zip(batch["rows"][pack].tolist(), starts, strict=False):
            if row >= 0:
                at = pack * batch["input_ids"].shape[1] + start
                found[row] = slice(at, at + LENGTHS[row])
    assert sorted(found) == list(range(len(LENGTHS)))
    return found


@lru_cache
def _model(family: str, name: str, kernel: str) -> Any:
    model = stock(family)
    plan: LayerPlan = PLANS[name](shape(family))
    model = with_random_compensations(apply_plan(model, plan))
    model.set_attn_implementation(kernel)
    return model


def model_of(family: str, name: str, kernel: str, mode: str) -> Any:
    model = _model(family, name, kernel)
    model.config.reuse_mode = mode
    return model.eval()


def all_logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return logits_at(model, batch, torch.arange(batch["input_ids"].numel()))


def gradients(model: Any, batches: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    for batch in batches:
        summed_response_loss(model, batch, ScoredTokens.of(batch["labels"])).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


CASES = [
    (family, name, kernel, mode)
    for family in ("llama", "gemma2")
    for name in PLANS
    for kernel in (("eager",) if family in EAGER_ONLY else ("sdpa", "eager"))
    for mode in (MODES if "uniattn" in name else ("auto",))
]


@pytest.mark.parametrize(("family", "name", "kernel", "mode"), CASES)
def test_losses_and_gradients_are_those_of_the_rows_alone(family, name, kernel, mode):
    model, encoded = model_of(family, name, kernel, mode), rows()
    batch, single = packed(encoded), [alone(encoded, row) for row in range(len(LENGTHS))]
    scored = ScoredTokens.of(batch["labels"])
    losses = torch.nn.functional.cross_entropy(
        logits_at(model, batch, scored.positions), scored.targets, reduction="none"
    )
    for row, place in places(batch).items():
        of_row = losses[(scored.positions >= place.start) & (scored.positions < place.stop)].sum()
        expected = summed_response_loss(model, single[row], ScoredTokens.of(single[row]["labels"]))
        torch.testing.assert_close(of_row, expected, atol=1e-5, rtol=1e-5)
    found, expected = gradients(model, [batch]), gradients(model, single)
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1
    for parameter, gradient in expected.items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(found[parameter], gradient, atol=1e-5 * max(1, scale), rtol=1e-5, msg=parameter)


@pytest.mark.parametrize(("family", "name", "kernel", "mode"), CASES)
def test_a_row_does_not_see_the_others_of_its_pack(family, name, kernel, mode):
    model, batch = model_of(family, name, kernel, mode), packed(rows())
    with torch.no_grad():
        before = all_logits(model, batch)
        for row, place in places(batch).items():
            changed = {**batch, "input_ids": batch["input_ids"].clone()}
            changed["input_ids"].view(-1)[place] = (batch["input_ids"].view(-1)[place] + 7) % 61 + 3
            moved = (all_logits(model, changed) - before).abs().amax(-1)
            assert (moved[place] > 1e-3).all()
            moved[place] = 0
            assert moved.max() <= 1e-6, row


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", [*DISTINCT, "qwen3_moe"])
def test_families_keep_the_rows_of_a_pack_apart(family, mode):
    model, encoded = converted(family, "mixed", mode), rows()
    batch = packed(encoded)
    with torch.no_grad():
        logits = all_logits(model, batch)
        for row, place in places(batch).items():
            torch.testing.assert_close(logits[place], all_logits(model, alone(encoded, row)), atol=1e-5, rtol=1e-4)


def test_gradient_checkpointing_keeps_rows_apart():
    model, batch = converted("llama", "uniattn").train(), packed(rows())
    expected = gradients(model, [batch])
    model.activation_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model, [batch]).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5)


def test_no_row_is_predicted_from_the_one_before():
    batch = packed(rows())
    starts = batch["position_ids"] == 0
    assert (batch["labels"][starts] == -100).all()
    scored = ScoredTokens.of(batch["labels"])
    last = sum(length - max(1, prompt) for length, prompt in zip(LENGTHS, PROMPTS, strict=True))
    earlier = sum(end - max(1, start) for spans in EARLIER.values() for start, end in spans)
    assert len(scored.targets) == last + earlier == 25 + 5


def test_a_blank_pack_counts_for_nothing():
    packs = PackedRows(rows(), MAX_LENGTH, seed=0)
    batch = PackCollator(pad_id=0)([packs[0].blank()])
    assert (batch["labels"] == -100).all()
    assert (batch["rows"] == -1).all()
    assert int(batch["num_tokens"]) == 0
    found = gradients(converted("llama", "uniattn"), [batch])
    assert found
    assert all(not gradient.any() for gradient in found.values())


def test_stock_models_are_kept_apart_too():
    model = AutoModelForCausalLM.from_config(stock("llama").config, attn_implementation="sdpa").eval()
    encoded = rows()
    batch = packed(encoded)
    with torch.no_grad():
        logits = all_logits(model, batch)
        for row, place in places(batch).items():
            torch.testing.assert_close(logits[place], all_logits(model, alone(encoded, row)), atol=1e-5, rtol=1e-4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=200), st.integers(0, 3))
def test_packs_hold_every_row_once_and_are_never_too_long(lengths, seed):
    packs = pack_rows(torch.tensor(lengths), 50, seed)
    assert sorted(row for pack in packs for row in pack) == list(range(len(lengths)))
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 50
    assert packs == pack_rows(torch.tensor(lengths), 50, seed)


def test_packs_are_nearly_full_and_random():
    lengths = torch.randint(20, 500, (5_000,), generator=torch.Generator().manual_seed(0))
    packs = pack_rows(lengths, 1_024, seed=0)
    assert int(lengths.sum()) / (len(packs) * 1_024) > 0.95
    assert packs != pack_rows(lengths, 1_024, seed=1)
