"""Costs of mixtures of experts: all are parameters, those that serve a token are FLOPs, those touched are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.shapes import toy_shape
from tests.tiny_models import LAYERS, SIZES, UNMODIFIED, VOCABULARY, stock, tokens
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, MixtralConfig, Qwen3MoeConfig

from uniattn_pl.cli import main
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.plan import Experts, LayerPlan, ModelShape, costs
from uniattn_pl.training.callbacks.throughput import flops_per_token

D, HEADS, GROUPS, SIZE, INNER = 32, 4, 2, 8, 48  # of `SIZES`
ATTENTION = D * SIZE * (2 * HEADS + 2 * GROUPS)  # W_q, W_o, W_k, W_v
OTHERS: dict[str, dict[str, int]] = {
    "granitemoeshared": {"num_local_experts": 5, "num_experts_per_tok": 2, "shared_intermediate_size": 12},
    "qwen2_moe": {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    "glm4_moe": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20},
    "ernie4_5_moe": {"moe_num_experts": 5, "moe_k": 3, "moe_intermediate_size": 20},
}
"""Families with shared experts, gates of them, dense layers at the bottom, biases of routers."""


def counted_flops(model: torch.nn.Module, batch_size: int) -> int:
    """Of a forward over one token per sequence, rotary tables left out, as PyTorch counts its matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens(batch_size, 1), use_cache=False)
    rotary = [sum(by.values()) for name, by in counter.get_flop_counts().items() if name.endswith("rotary_emb")]
    return counter.get_total_flops() - sum(rotary)


def flops(shape: ModelShape, batch_size: int = 1) -> int:
    return costs.prefill_flops(UNMODIFIED, shape, batch_size=batch_size, length=1)


def test_mixtral_by_hand() -> None:
    model = stock("mixtral")
    shape = shape_of(model.config)
    expert, router, norms, table = 3 * D * INNER, 5 * D, 2 * D, VOCABULARY * D
    total = 2 * table + D + LAYERS * (ATTENTION + 5 * expert + router + norms)
    assert costs.parameters(UNMODIFIED, shape) == total == sum(p.numel() for p in model.parameters())
    assert costs.active_parameters(UNMODIFIED, shape) == total - LAYERS * 3 * expert
    pair = 2 * 2 * HEADS * SIZE  # a token that attends to itself alone
    assert flops(shape) == LAYERS * (2 * (ATTENTION + 2 * expert + router) + pair) + 2 * table

    # one token reads 2 of 5 experts; two tokens 2 + 2 and, of the second's 2, 2/5 each were read already: 3.2
    def read(batch_size: int) -> int:
        return costs.decode_bytes(UNMODIFIED, shape, batch_size=batch_size, length=0, bytes_per_element=2)

    assert read(1) == 2 * (total - table - LAYERS * 3 * expert)
    assert read(2) == 2 * round(total - table - LAYERS * (5 - 3.2) * expert)
    assert read(1000) == 2 * (total - table)


def test_qwen3_moe_by_hand_with_dense_layers_between() -> None:
    sizes = {**SIZES, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 20}
    # of layers 0 to 5, every second has experts: 1, 3, 5; but 3 is dense all the same
    config = Qwen3MoeConfig(**sizes, decoder_sparse_step=2, mlp_only_layers=[3])
    shape = shape_of(config)
    assert [layer.experts is not None for layer in shape.layers] == [False, True, False, False, False, True]
    expert, dense, router, table = 3 * D * 20, 3 * D * INNER, 6 * D, VOCABULARY * D
    norms = 2 * D + 2 * SIZE
    total = 2 * table + D + LAYERS * (ATTENTION + norms) + 4 * dense + 2 * (6 * expert + router)
    assert costs.parameters(UNMODIFIED, shape) == total
    linear = LAYERS * ATTENTION + 4 * dense + 2 * (3 * expert + router)
    assert flops(shape) == 2 * linear + LAYERS * 4 * HEADS * SIZE + 2 * table


@pytest.mark.parametrize(
    ("config", "total", "active"),
    [
        # mistral.ai/news/mixtral-of-experts: 46.7B parameters, 12.9B per token
        (MixtralConfig(), 46_702_792_704, 12_879_925_248),
        # the card of Qwen/Qwen3-30B-A3B: 30.5B, of which 3.3B activated
        (
            Qwen3MoeConfig(
                vocab_size=151936,
                hidden_size=2048,
                intermediate_size=6144,
                num_hidden_layers=48,
                num_attention_heads=32,
                num_key_value_heads=4,
                head_dim=128,
                num_experts=128,
                num_experts_per_tok=8,
                moe_intermediate_size=768,
            ),
            30_532_122_624,
            3_353_032_704,
        ),
    ],
    ids=["Mixtral-8x7B", "Qwen3-30B-A3B"],
)
def test_real_models_have_the_sizes_that_their_makers_publish(config: MixtralConfig, total: int, active: int) -> None:
    shape = shape_of(config)
    plan = LayerPlan.unmodified(shape.num_layers)
    assert costs.parameters(plan, shape) == total
    assert costs.active_parameters(plan, shape) == active


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "mimo_v2_flash"])
def test_flops_are_those_that_pytorch_counts(family: str) -> None:
    model = stock(family)
    model.set_experts_implementation("eager")  # which computes nothing for experts that are not asked
    shape = shape_of(model.config)
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(UNMODIFIED, shape)
    model.set_attn_implementation("eager")
    assert flops(shape, batch_size=3) == counted_flops(model, 3)


@pytest.mark.parametrize("family", OTHERS)
def test_shared_experts_and_dense_layers_are_every_tokens(family: str) -> None:
    config = AutoConfig.for_model(family, **SIZES | OTHERS[family])
    model = stock_of(config)
    shape = shape_of(model.config)
    assert costs.parameters(UNMODIFIED, shape) == sum(p.numel() for p in model.parameters())
    assert flops(shape, batch_size=3) == counted_flops(model, 3)


def stock_of(config: AutoConfig) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model.eval()


@given(st.integers(1, 64), st.data())
def test_a_batch_reads_no_more_than_all_experts_and_no_fewer_than_one_tokens(count: int, data: st.DataObject) -> None:
    per_token = data.draw(st.integers(1, count))
    experts = Experts(count, per_token, matrices=10, biases=1)
    read = [experts.read(batch) for batch in (1, 2, 8, 10_000)]
    assert read == sorted(read)
    assert read[0] == pytest.approx(per_token * 11)
    assert read[-1] == pytest.approx(experts.parameters, rel=0.01)
    assert read[1] <= 2 * read[0] * (1 + 1e-9)


def test_a_router_at_random_reads_as_many_experts_as_expected() -> None:
    experts, batch = Experts(16, 3, matrices=1), 6
    generator = torch.Generator().manual_seed(0)
    chosen = torch.rand(4000, batch, 16, generator=generator).topk(3).indices  # [trials, B, k]
    touched = torch.zeros(4000, 16).scatter_(1, chosen.flatten(1), 1.0).sum(dim=1)
    assert float(touched.mean()) == pytest.approx(experts.read(batch), rel=0.01)


def test_training_counts_the_flops_of_a_tokens_own_experts() -> None:
    model = stock("mixtral").requires_grad_(requires_grad=False)
    active = costs.active_parameters(UNMODIFIED, shape_of(model.config))
    assert flops_per_token(model) == pytest.approx(4 * active)
    model.requires_grad_(requires_grad=True)
    assert flops_per_token(model) == pytest.approx(6 * active)


def test_plan_prints_what_computes_for_a_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    MixtralConfig().save_pretrained(tmp_path)
    words = ["architecture.superblock_size=2", "architecture.num_superblocks=1", "--length", "512"]
    assert main(["plan", f"model.source={tmp_path}", *words]) == 0
    printed = capsys.readouterr().out
    assert "unmodified: 46.7 G (46,702,792,704)" in printed
    # a reuse layer gives up W_q and W_k, 4096 x (4096 + 1024), and gets a W_c of 4096 x 4096
    assert "Of them compute for a token: 12.9 G (12,875,730,944)" in printed


def test_a_plan_saves_a_smaller_part_of_a_model_that_has_experts() -> None:
    dense = toy_shape(4)
    routed = replace(dense, layers=tuple(replace(layer, experts=Experts(8, 2, 192)) for layer in dense.layers))
    plan = LayerPlan.unmodified(4).drop([2, 3], compensated=False)

    def saved(shape: ModelShape) -> int:
        return costs.prefill_flops(LayerPlan.unmodified(4), shape, batch_size=1, length=10) - costs.prefill_flops(
            plan, shape, batch_size=1, length=10
        )

    assert saved(routed) == saved(dense)
    assert costs.parameters(plan, routed) == costs.parameters(plan, dense) + 4 * 8 * 192
