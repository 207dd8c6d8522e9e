"""Low-rank updates of matrices in 4 bits, and of lengths and directions: what they compute, keep and take."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from tests.plan.test_memory import BATCH, LENGTH, llama, saved_bytes
from tests.tiny_models import SPECIAL, random_model
from tests.tiny_seq2seq import stock_seq2seq
from torch import nn

from uniattn_pl import apply_architecture, lora_config
from uniattn_pl.errors import UserError
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.loading.frozen_4bit import freeze_in_4bit, record_rounding, recorded_rounding, round_to_4bit
from uniattn_pl.modeling.lora import initialise_updates
from uniattn_pl.plan.training_memory import training_memory

CPU = torch.device("cpu")
IDS = torch.arange(3, 40)[None]
KEPT = ("w_c", "model.layers.7.self_attn.o_proj")


def converted() -> Any:
    torch.manual_seed(0)
    model = apply_architecture(llama(), "uniattn", superblock_size=3, num_superblocks=2)
    for layer in model.layer_plan.compensated:  # type: ignore[union-attr]
        model.get_parameter(f"model.layers.{layer}.self_attn.w_c.weight").data.normal_(0, 0.05)
    return model


@pytest.fixture(autouse=True)
def _with_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes", reason="the package bitsandbytes is not installed")


def test_what_is_trained_on_is_what_is_merged_into() -> None:
    frozen, rounded = converted(), converted()
    before = {name: parameter.clone() for name, parameter in rounded.named_parameters()}
    assert freeze_in_4bit(frozen, KEPT, device=CPU, computes_in=torch.float32) > 0
    round_to_4bit(rounded, KEPT)
    torch.testing.assert_close(frozen(IDS).logits, rounded(IDS).logits, rtol=0, atol=1e-5)
    changed = {name for name, parameter in rounded.named_parameters() if not torch.equal(parameter, before[name])}
    projections = {name for name in before if name.endswith("_proj.weight")}
    assert changed == projections - {"model.layers.7.self_attn.o_proj.weight"}
    assert {name for name, _ in frozen.named_parameters()} == before.keys()


@pytest.mark.parametrize(("family", "stay"), [("bamba", ("mamba.in_proj", "mamba.out_proj")), ("t5", (".wo",))])
def test_what_a_family_asks_of_its_weights_themselves_stays(family: str, stay: tuple[str, ...]) -> None:
    model = stock_seq2seq("t5") if family == "t5" else random_model(family, **SPECIAL[family])
    rounded = copy.deepcopy(model)
    assert freeze_in_4bit(model, (), device=CPU, computes_in=torch.float32) > 0
    plain = {name for name, module in model.named_modules() if type(module) is nn.Linear}
    assert {name for name in plain if name.endswith(stay)} == plain - {"lm_head"} != set()
    round_to_4bit(rounded, ())
    logits = [one.eval()(input_ids=IDS, labels=IDS).logits for one in (model, rounded)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
    logits[0].sum().backward()


def test_gradients_go_through_it_also_behind_a_measurement() -> None:
    """bitsandbytes packs weights anew in the first forward for inference on a CPU with bfloat16."""
    model = converted()
    freeze_in_4bit(model, KEPT, device=CPU, computes_in=torch.float32)
    adapted = get_peft_model(model, lora_config(model, rank=2), autocast_adapter_dtype=False)
    initialise_updates(adapted, 0)

    def gradients() -> dict[str, torch.Tensor]:
        adapted.zero_grad()
        adapted(input_ids=IDS, labels=IDS).loss.backward()
        return {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}

    before = gradients()
    with torch.no_grad():
        adapted.eval()(input_ids=IDS)
    adapted.train()
    behind = gradients()
    assert any("layers.0.self_attn.q_proj.lora_B" in name and value.abs().max() > 0 for name, value in behind.items())
    assert behind.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in behind.items())


def test_the_weights_take_what_the_plan_says() -> None:
    model = converted()
    full = sum(p.nbytes for p in model.parameters())
    freeze_in_4bit(model, ("w_c",), device=CPU, computes_in=torch.float32)
    quantised = [p for p in model.parameters() if hasattr(p, "quant_state")]
    states = [p.quant_state for p in quantised]  # type: ignore[attr-defined]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states)  # but for their tables
    sizes: dict[str, Any] = {"micro_batch_size": 1, "length": 1, "weight_bytes": 4, "activation_bytes": 4}
    shape, plan = shape_of(converted().config), model.layer_plan
    whole, in_4_bits = (
        training_memory(plan, shape, stage=2, lora_rank=1, quantized=quantised, **sizes).weights
        for quantised in (False, True)
    )
    assert whole - in_4_bits == pytest.approx(full - sum(p.nbytes for p in model.parameters()) - scales, rel=0.001)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "mixed"])
def test_the_plan_knows_what_lengths_of_rows_keep_for_the_backward_pass(precision: str) -> None:
    model = converted().to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    plan, shape, weight_bytes = model.layer_plan, shape_of(model.config), model.dtype.itemsize
    adapted: Any = get_peft_model(model, lora_config(model, rank=4, use_dora=True), autocast_adapter_dtype=False)
    sizes: dict[str, Any] = {"micro_batch_size": BATCH, "length": LENGTH, "weight_bytes": weight_bytes}
    sizes |= {"activation_bytes": 4 if precision == "float32" else 2, "scored_fraction": 0.0, "lora_rank": 4}
    without, estimate = (training_memory(plan, shape, stage=2, dora=dora, **sizes) for dora in (False, True))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed"):
        assert estimate.activations == pytest.approx(saved_bytes(adapted.train()), rel=0.1)
    lengths = [p for name, p in adapted.named_parameters() if "lora_magnitude_vector" in name]
    assert estimate.gradients - without.gradients == sum(p.nbytes for p in lengths)


def test_an_adapter_says_how_its_base_was_rounded(tmp_path: Path) -> None:
    assert recorded_rounding(tmp_path) is None
    record_rounding(tmp_path, ["w_c", "a"])
    assert recorded_rounding(tmp_path) == ["a", "w_c"]
    for content, message in (
        ({"quantization": "8bit", "kept": []}, "'8bit' is not for training"),
        ({"quantization": "3bit", "kept": []}, "there is no quantization '3bit'"),
        ({"quantization": "4bit", "kept": [1]}, "kept must be a list of names of modules"),
    ):
        (tmp_path / "base_quantization.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            recorded_rounding(tmp_path)
