"""What `plan` says of a card: what fits on it, and that what it proposes does fit."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.card_rates import CARDS, GIB, memory_bytes
from uniattn_pl.training.card_needs import CardNeed, Cards, card_needs
from uniattn_pl.training.planning import compile_plan

ROOT = Path(__file__).parents[2]
ONE_CARD = ROOT / "experiments" / "scale" / "llama-3.1-8b_lora_1gpu.yaml"
FSDP = re.compile(r"(\d+) cards \(training\.strategy=fsdp\)(?: with (.*))?")


@cache
def planned() -> tuple[LayerPlan, ModelShape]:
    return compile_plan(load_config([ONE_CARD]))


def needs(words: list[str], cards: Cards, *, batch_size: int = 1) -> dict[str, CardNeed]:
    config = load_config([ONE_CARD], words).config
    found = card_needs(config, *planned(), cards, batch_size=batch_size, lengths=[8192])
    return {need.what.split(",")[0]: need for need in found}


def test_stage_1_updates_calibration_and_inference_of_8b_fit_on_one_card_of_80_gb() -> None:
    found = needs([], Cards(1, memory_bytes("h100-80g")))
    fitting = {name for name, need in found.items() if need.fits}
    assert fitting == {"calibration", "stage 1 (W_c)", "stage 2 (LoRA", "inference"}
    assert "in main memory" in found["calibration"].note, "its streams are larger than their share of the card"
    assert "in files" not in found["calibration"].note


@settings(deadline=None)  # the first case inspects the model
@given(
    gib=st.sampled_from([16, 22, *(int(card.memory_gib) for card in CARDS.values())]),
    count=st.sampled_from([1, 2, 8]),
    micro_batch=st.sampled_from([1, 4, 48]),
    checkpointing=st.booleans(),
    precision=st.sampled_from(["32-true", "bf16-mixed", "bf16-true"]),
)
def test_what_is_proposed_fits(gib: int, count: int, micro_batch: int, checkpointing: bool, precision: str) -> None:
    words = [f"training.micro_batch_size={micro_batch}", f"training.gradient_checkpointing={checkpointing}"]
    words += [f"training.precision={precision}", f"trainer.devices={count}", "training.batch_size=384"]
    cards = Cards(count, gib * GIB)
    for name, need in needs(words, cards).items():
        assert need.fits == (not need.remedy)
        for remedy in need.remedy.split("; or ") if name.startswith("stage") and need.remedy else []:
            sharded = FSDP.fullmatch(remedy)
            options = (sharded[2] or "" if sharded else remedy).split()
            more = Cards(int(sharded[1]) if sharded else count, cards.memory)
            assert needs([*words, *options], more)[name].fits, remedy


def test_the_most_sequences_are_proposed_where_a_batch_does_not_fit() -> None:
    cards = Cards(1, memory_bytes("l4-24g"))
    refused = needs([], cards, batch_size=32)["inference"]
    most = int(refused.remedy.removeprefix("--batch-size "))
    assert needs([], cards, batch_size=most)["inference"].fits
    assert not needs([], cards, batch_size=most + 1)["inference"].fits


@pytest.mark.parametrize(("word", "gib"), [("h100-80g", 79.1), ("24", 24), ("L4-24G", 22.0), ("0.5", 0.5)])
def test_a_card_is_named_or_given_in_gib(word: str, gib: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model.source=tiny-llama", "architecture.num_superblocks=1", "--gpu-memory", word]) == 0
    printed = capsys.readouterr().out
    assert f"On a device of {gib:.3g} GiB" in printed or f"On a device of {gib * 1024:.0f} MiB" in printed
    assert "stage 2 (all weights)" in printed


def test_the_card_of_predicted_times_is_the_one_that_is_filled(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "model.source=tiny-llama", "architecture.num_superblocks=1", "--card", "l4"]
    assert main(words) == 0
    assert "On a device of 22 GiB" in capsys.readouterr().out
    assert main([*words, "--gpu-memory", "12"]) == 0
    assert "On a device of 12 GiB" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["h10-80g", "nan", "-1", "0", "1e9", ""])
def test_another_card_is_refused_with_those_there_are(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "model.source=tiny-llama", f"--gpu-memory={word}"]) == 2
    message = capsys.readouterr().err
    assert "--gpu-memory" in message
    assert word != "h10-80g" or "Did you mean 'h100-80g'?" in message
