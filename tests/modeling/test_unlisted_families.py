"""Families that are not in the table: SmolLM3 (layers without rotation), and those that cannot be converted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import MODES, SIZES, UNMODIFIED, random_model, stock, tokens, with_random_compensations
from transformers import AutoConfig, DynamicCache, PreTrainedModel

import uniattn_pl
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.attention.forwarded_readers import ForwardedReuse
from uniattn_pl.modeling.attention.operate import FORWARDED
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan, costs

UNLISTED = "smollm3"
IDS = tokens(2, 10)
# Layers 2 and 5 have no rotation: a map may come from one and be used by one, for it is ready-made.
REUSE = UNMODIFIED.reuse([2], 1, compensated=True).reuse([4, 5], 3, compensated=True)
REUSE_OF_UNROTATED = UNMODIFIED.reuse([3, 5], 2, compensated=True)
SHARE = UNMODIFIED.share_kv([1, 3], 0, compensated=True).reuse([5], 2, compensated=False).drop([4], compensated=True)
LOAD = "import torch, uniattn_pl; model = uniattn_pl.load_model({folder!r}, dtype='float32'); "
PRINT = "torch.set_grad_enabled(False); torch.save(model(torch.load({ids!r})).logits, {logits!r})"


def converted(plan: LayerPlan, mode: str = "auto") -> PreTrainedModel:
    model = with_random_compensations(apply_plan(stock(UNLISTED), plan))
    model.config.reuse_mode = mode
    return model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("plan", [REUSE, REUSE_OF_UNROTATED, SHARE], ids=["reuse", "of unrotated", "share_kv"])
@torch.no_grad()
def test_steps_give_the_logits_of_one_forward(plan: LayerPlan, mode: str) -> None:
    model = converted(plan, mode)
    cache = DynamicCache(config=model.config)
    steps = [model(part, past_key_values=cache, use_cache=True).logits for part in IDS.split([6, 1, 1, 2], 1)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(IDS, use_cache=False).logits, rtol=0, atol=5e-5)
    shape = shape_of(model.config)
    predicted = costs.kv_cache_bytes(plan, shape, batch_size=2, length=IDS.shape[1], bytes_per_element=4)
    assert kv_cache_bytes(cache) == predicted
    assert sum(p.numel() for p in model.parameters()) == costs.parameters(plan, shape)


@torch.no_grad()
def test_reuse_of_an_equal_map_loses_nothing() -> None:
    """Layer 4 is given the map of layer 3: its queries and keys, and a layer 3 that adds nothing to the stream."""
    model = stock(UNLISTED)
    layers = model.model.layers
    for name in ("self_attn.q_proj", "self_attn.k_proj", "input_layernorm"):
        layers[4].get_submodule(name).load_state_dict(layers[3].get_submodule(name).state_dict())
    for projection in (layers[3].self_attn.o_proj, layers[3].mlp.down_proj):
        projection.weight.zero_()
    expected = model(IDS).logits
    apply_plan(model, UNMODIFIED.reuse([4], 3, compensated=False))
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_saved_folder_loads_here_and_in_a_fresh_process(tmp_path: Path) -> None:
    model, folder = converted(REUSE), tmp_path / "model"
    model.save_pretrained(folder)
    expected = model(IDS).logits
    loaded = uniattn_pl.load_model(str(folder), dtype="float32")
    assert type(loaded) is type(model)
    assert loaded.layer_plan == REUSE
    assert torch.equal(loaded(IDS).logits, expected)
    torch.save(IDS, tmp_path / "ids.pt")
    paths = {"folder": str(folder), "ids": str(tmp_path / "ids.pt"), "logits": str(tmp_path / "logits.pt")}
    subprocess.run([sys.executable, "-c", (LOAD + PRINT).format(**paths)], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)


@pytest.mark.parametrize(
    ("plan", "named"),
    [
        (UNMODIFIED.share_kv([2], 1, compensated=True), "layer 2 reads 1"),
        (UNMODIFIED.share_kv([3, 4], 2, compensated=False), "layer 3 reads 2; layer 4 reads 2"),
        (UNMODIFIED.share_kv([1, 2, 5], 0, compensated=False), "layer 2 reads 0; layer 5 reads 0"),
    ],
    ids=["onto one", "from one", "onto two"],
)
def test_turned_queries_over_keys_that_are_not_are_refused(plan: LayerPlan, named: str) -> None:
    model = stock(UNLISTED)
    with pytest.raises(UserError, match=rf"'smollm3': {named}, but only one"):
        apply_plan(model, plan)
    assert model.config.model_type == UNLISTED
    further = apply_plan(model, UNMODIFIED.drop([4], compensated=False))
    with pytest.raises(UserError, match=named.split(";")[0]):
        apply_plan(further, plan.drop([4], compensated=False))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("nemotron", "its decoder does not pass keyword arguments on to the attention"),
        ("gpt2", "its decoder keeps no list named 'layers' or 'block'"),
        ("mamba", "none of its layers attends through transformers' attention functions"),
        ("gpt_neox", "none of its layers attends through transformers' attention functions"),
        ("stablelm", "its decoder does not pass keyword arguments on to the attention"),
        ("vit", "no language model that transformers knows"),
    ],
)
def test_a_family_that_cannot_be_converted_is_refused_with_the_reason(family: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refusal:
        shape_of(AutoConfig.for_model(family, **SIZES))
    message = str(refusal.value)
    assert f"model type '{family}'" in message
    assert all(supported in message for supported in FAMILIES)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["arcee", "flex_olmo", "hyperclovax", "internlm3", "jais2"])
def test_a_family_that_a_plan_describes_is_converted(family: str, dtype: torch.dtype) -> None:
    for plan in (UNMODIFIED.reuse([2], 1, compensated=False), UNMODIFIED.share_kv([2], 1, compensated=False)):
        assert apply_plan(random_model(family, dtype), plan).layer_plan == plan


def test_an_attention_that_cannot_run_as_the_plan_has_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because of its role's attention; a family's own kernel may fail as well, on what it is not made for."""

    class OtherSizes(ForwardedReuse):
        def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            return super().forward(hidden_states[..., 1:], *args, **kwargs)

    monkeypatch.setitem(FORWARDED, "reuse", OtherSizes)
    model = stock(UNLISTED).train()
    with pytest.raises(UserError, match=r"'smollm3': its attention cannot be run .*\(RuntimeError"):
        apply_plan(model, UNMODIFIED.reuse([2], 1, compensated=False))
    assert model.config.model_type == UNLISTED
    assert model.training
