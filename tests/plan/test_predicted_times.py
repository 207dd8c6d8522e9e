"""Predicted times: against hand computation on a tiny shape, how they scale, and below what an H100 took."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.architectures import CLA, LLMDrop, UniAttn
from uniattn_pl.cli import main
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.loading.pretrained import load_shape
from uniattn_pl.plan import Heads, LayerPlan, LayerShape, ModelShape
from uniattn_pl.plan.card_rates import CARDS, CardRates, card_of_device, find_card
from uniattn_pl.plan.predicted_times import (
    ATTENTIONS,
    EAGER_MAPS,
    FUSED,
    LEAST,
    REACHED,
    Timed,
    decode_seconds,
    held_bytes,
    prefill_seconds,
)

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
# 4 query heads over 2 of size 8, hidden 32, feed-forward of 1,000 weights, vocabulary 10, embeddings tied
LAYER = LayerShape(Heads(4, 2, 8, 8), query=1024, key=512, value=512, output=1024, feed_forward=1000)
SHAPE = ModelShape("tiny", 32, 10, 320, (LAYER, LAYER))
PLAN = LayerPlan.unmodified(2).reuse([1], 0, compensated=False)
FULL, READER = 1024 + 512 + 512 + 1024 + 1000, 512 + 1024 + 1000  # weights of a layer
COMPUTES = CardRates("", flops_per_s=1.0, bytes_per_s=1e18, memory_gib=1.0)
MOVES = CardRates("", flops_per_s=1e18, bytes_per_s=1.0, memory_gib=1.0)
LLAMA = load_shape("meta-llama/Llama-3.1-8B")
DROPPED = [18, 21, 19, 20, 26, 22, 29, 28, 27, 25, 23, 24]
PLANS = {
    "stock": LayerPlan.unmodified(32),
    "uniattn": UniAttn().compile(LLAMA),
    "uniattn without W_c": UniAttn(compensation=False).compile(LLAMA),
    "uniattn, maps kept": UniAttn().compile(LLAMA),
    "cla": CLA().compile(LLAMA),
    "llmdrop": LLMDrop(layers=DROPPED).compile(LLAMA),
}


def test_a_prompt_takes_the_flops_of_its_products() -> None:
    linear = 2 * 6 * (FULL + READER) + 2 * 32 * 10  # 6 tokens, logits of one
    pairs, square = 21, 36  # causal, and the rectangle
    product = 2 * 4 * 8  # FLOPs of a pair, in Q K^T and in map x V
    expected = {
        LEAST: linear + pairs * 3 * product,  # the reader multiplies its values only
        FUSED: linear + pairs * 4 * product,  # and computes the map again
        EAGER_MAPS: linear + square * 3 * product,
    }
    for attention, flops in expected.items():
        case = Timed(1, 6, attention)
        assert prefill_seconds(PLAN, SHAPE, COMPUTES, case) == pytest.approx(flops)
        assert prefill_seconds(PLAN, SHAPE, COMPUTES, Timed(1, 6, attention, REACHED)) == pytest.approx(flops / 0.52)


def test_eager_attention_moves_the_map_of_each_layer_that_computes_one() -> None:
    weights = 2 * (FULL + READER + 320)
    assert prefill_seconds(PLAN, SHAPE, MOVES, Timed(1, 6)) == pytest.approx(weights)
    maps = 20 * 4 * 36  # of one layer
    assert prefill_seconds(PLAN, SHAPE, MOVES, Timed(1, 6, EAGER_MAPS)) == pytest.approx(weights + maps)
    unmodified = prefill_seconds(LayerPlan.unmodified(2), SHAPE, MOVES, Timed(1, 6, EAGER_MAPS))
    assert unmodified == pytest.approx(2 * (2 * FULL + 320) + 2 * maps)


@pytest.mark.parametrize(
    ("plan", "weights", "least", "eager"),
    [
        (LayerPlan.unmodified(2), 2 * FULL, 2 * 32, 2 * 32 * 5),  # K and V; copied for both heads of their group
        (PLAN, FULL + READER, 32 + 16, 32 * 5 + 16),  # a reader of the map needs its values
        (LayerPlan.unmodified(2).share_kv([1], 0, compensated=False), 2 * FULL - 1024, 2 * 32, 2 * 32 * 5),
        (LayerPlan.unmodified(2).drop([1], compensated=False), FULL + 1000, 32, 32 * 5),
    ],
)
def test_a_step_moves_weights_and_what_each_layer_reads_of_caches(
    plan: LayerPlan, weights: int, least: int, eager: int
) -> None:
    """Numbers per token and sequence, of 2 bytes each."""
    for attention, numbers in ((LEAST, least), (FUSED, least), (EAGER_MAPS, eager)):
        found = decode_seconds(plan, SHAPE, MOVES, Timed(3, 50, attention))
        assert found == pytest.approx(2 * (weights + 320) + 3 * 50 * 2 * numbers)


def test_windows_bound_what_is_computed_and_read() -> None:
    local = LayerShape(LAYER.heads, 1024, 512, 512, 1024, feed_forward=1000, window=4)
    shape, plan = ModelShape("tiny", 32, 10, 320, (local, local)), LayerPlan.unmodified(2)
    pairs = 1 + 2 + 3 + 4 + 4 + 4
    assert prefill_seconds(plan, shape, COMPUTES, Timed(1, 6, FUSED)) == pytest.approx(
        2 * 6 * 2 * FULL + 640 + pairs * 4 * 64
    )
    assert decode_seconds(plan, shape, MOVES, Timed(1, 50)) == pytest.approx(2 * (2 * FULL + 320) + 4 * 2 * 2 * 32)


@settings(deadline=None)
@given(
    st.sampled_from(list(PLANS.values())),
    st.sampled_from(list(CARDS.values())),
    st.integers(1, 64),
    st.integers(1, 2**16),
)
def test_a_bound_is_never_above_and_times_grow_with_the_work(
    plan: LayerPlan, card: CardRates, batch: int, length: int
) -> None:
    unmodified = LayerPlan.unmodified(32)
    for seconds in (prefill_seconds, decode_seconds):
        least, fused, eager = (seconds(plan, LLAMA, card, Timed(batch, length, name)) for name in ATTENTIONS)
        assert least <= fused * (1 + 1e-9)
        assert least <= eager * (1 + 1e-9)
        assert fused < seconds(plan, LLAMA, card, Timed(batch, length, FUSED, REACHED))
        assert fused <= seconds(plan, LLAMA, card, Timed(2 * batch, length, FUSED)) <= 2 * fused * (1 + 1e-9)
        assert fused <= seconds(plan, LLAMA, card, Timed(batch, 2 * length, FUSED))
        assert eager <= seconds(unmodified, LLAMA, card, Timed(batch, length, EAGER_MAPS)) * 1.02  # W_c is no saving


def h100_rows() -> list[dict[str, Any]]:
    rows = json.loads((GPU / "2026-11-26_h100.json").read_text())["rows"]
    return [row for row in rows if row.get("what") in ("ttft", "tpot") and "failed" not in row]


def test_an_h100_was_never_faster_than_the_bound() -> None:
    card, rows = CARDS["h100-80g"], h100_rows()
    assert len(rows) > 20
    for row in rows:
        plan = PLANS[row["model"]]
        if row["what"] == "ttft":
            measured, case, seconds = row["seconds"], Timed(1, row["tokens"]), prefill_seconds
        else:
            measured, case, seconds = row["gpu_ms"] / 1000, Timed(row["batch"], row["context"]), decode_seconds
        assert measured > seconds(plan, LLAMA, card, case), row


def test_what_fused_kernels_are_predicted_to_take_is_what_an_h100_took() -> None:
    """Prompts of 8,192 and 32,768 tokens within 5 %; other models than stock, whose cache is copied, in steps of 32."""
    card = CARDS["h100-80g"]
    for row in h100_rows():
        plan, kept = PLANS[row["model"]], "kept" in row["model"]
        if row["what"] == "ttft" and row["tokens"] > 4096 and not kept:
            predicted = prefill_seconds(plan, LLAMA, card, Timed(1, row["tokens"], FUSED, REACHED))
            assert predicted == pytest.approx(row["seconds"], rel=0.05), row
        if row["what"] == "tpot" and row["batch"] == 32 and not row["cudnn"] and row["model"] != "stock":
            predicted = decode_seconds(plan, LLAMA, card, Timed(32, row["context"], FUSED, REACHED))
            assert predicted == pytest.approx(row["gpu_ms"] / 1000, rel=0.12), row


def test_what_must_be_held() -> None:
    parameters, cache = FULL + READER + 320, 2 * 50 * (32 + 16) * 2
    assert held_bytes(PLAN, SHAPE, Timed(2, 50, FUSED), prompt=True) == 2 * parameters + cache
    assert held_bytes(PLAN, SHAPE, Timed(2, 50, EAGER_MAPS), prompt=False) == 2 * parameters + cache
    maps = 6 * 2 * 4 * 50 * 50
    assert held_bytes(PLAN, SHAPE, Timed(2, 50, EAGER_MAPS), prompt=True) == 2 * parameters + cache + maps


def test_cards_are_found_by_name_and_by_what_the_driver_calls_them() -> None:
    assert find_card("H100")[0] == find_card("h100-80g")[0] == "h100-80g"
    for name, device in {
        "h100-80g": "NVIDIA H100 80GB HBM3",
        "h100pcie-80g": "NVIDIA H100 PCIe",
        "a100-80g": "NVIDIA A100-SXM4-80GB",
        "a100-40g": "NVIDIA A100-SXM4-40GB",
        "l4-24g": "NVIDIA L4",
        "l40s-48g": "NVIDIA L40S",
    }.items():
        assert card_of_device(device) == CARDS[name]
    assert card_of_device("a card of tomorrow") is None
    with pytest.raises(UserError, match=r"two cards are called 'a100'\..*a100-40g, a100-80g"):
        find_card("a100")
    with pytest.raises(UserError, match=r"there is no card 'h10-80g'\. Did you mean 'h100-80g'\?"):
        find_card("h10-80g")


def test_plan_prints_the_times_on_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "model.source=meta-llama/Llama-3.1-8B", "--length", "8192", "--batch-size", "1"]
    assert main([*words, "architecture.name=uniattn", "--card", "h100"]) == 0
    printed = capsys.readouterr().out
    assert "Predicted on h100-80g, batch size 1, bfloat16" in printed
    (least,) = (line.split() for line in printed.splitlines() if "at least  " in line)
    assert least[3:] == ["129", "133", "0.969", "4.71", "4.8", "0.981"]
    (fused,) = (line.split() for line in printed.splitlines() if "fused kernels" in line)
    assert fused[3:6] == ["255", "257", "0.994"]
    assert main([*words, "--batch-size", "8", "--card", "h100"]) == 0
    assert "eager          no room  no room" in capsys.readouterr().out
    assert main([*words, "--card", "h1000"]) == 2
    assert "--card: there is no card 'h1000'." in capsys.readouterr().err
