"""peft on converted models: W_c trains in full, adapters merge and unmerge, a reloaded adapter is the same model."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tests.modeling.test_convert import converted
from tests.parity import recorded
from tests.tiny_models import shape, stock, tokens, with_random_compensations
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from uniattn_pl import apply_architecture, lora_config
from uniattn_pl.errors import UserError
from uniattn_pl.exporting.export import export
from uniattn_pl.families.catalogue import byte_tokenizer
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.plan import LayerPlan


def fused_model() -> PreTrainedModel:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = AutoConfig.for_model("phi3", vocab_size=256, num_key_value_heads=2, pad_token_id=0, **sizes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    return apply_architecture(model, "uniattn", superblock_size=3, num_superblocks=1)


@pytest.fixture(params=["uniattn", "cla", "mixed", "fused"])
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return fused_model() if request.param == "fused" else converted(request.param)


def trained(model: PreTrainedModel) -> PeftModel:
    adapted = get_peft_model(model, lora_config(model, rank=2))
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    optimizer, ids = torch.optim.SGD(trainable, lr=0.5), recorded("inputs")["ids"]
    for _ in range(3):
        adapted(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return adapted.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=recorded("inputs")["ids"]).logits


def test_every_w_c_and_only_adapters_besides_it_are_trained(base: PreTrainedModel) -> None:
    plan, before = base.layer_plan, {n: p.clone() for n, p in base.named_parameters()}
    adapted = trained(copy.deepcopy(base))
    merged = dict(adapted.named_parameters())
    for layer in plan.compensated:
        name = f"model.layers.{layer}.self_attn.w_c"
        assert not torch.equal(
            merged[f"base_model.model.{name}.modules_to_save.default.weight"], before[f"{name}.weight"]
        )
    for name, parameter in merged.items():
        stock = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", "")
        if stock in before:
            assert torch.equal(parameter, before[stock]), name


def test_merging_and_unmerging_change_nothing(base: PreTrainedModel) -> None:
    adapted = trained(base)
    expected = logits(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-4)
    adapted.unmerge_adapter()
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-4)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, rtol=0, atol=1e-4)
    assert not any("lora" in name for name in merged.state_dict())


def test_a_reloaded_adapter_gives_the_same_and_export_merges_it(base: PreTrainedModel, tmp_path: Path) -> None:
    base.save_pretrained(tmp_path / "base")
    adapted = trained(load_folder(tmp_path / "base"))
    expected = logits(adapted)
    adapted.save_pretrained(tmp_path / "adapter")
    byte_tokenizer().save_pretrained(tmp_path / "adapter")
    reloaded = PeftModel.from_pretrained(load_folder(tmp_path / "base"), tmp_path / "adapter").eval()
    assert torch.equal(logits(reloaded), expected)
    exported = load_folder(export(tmp_path / "adapter", tmp_path / "exported"))
    assert exported.layer_plan == base.layer_plan
    torch.testing.assert_close(logits(exported), expected, rtol=0, atol=1e-4)


def test_an_adapter_without_its_base_is_named(tmp_path: Path) -> None:
    converted("uniattn").save_pretrained(tmp_path / "base")
    trained(load_folder(tmp_path / "base")).save_pretrained(tmp_path / "adapter")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"belongs to the model folder '.*base', which is not there"):
        load_folder(tmp_path / "adapter")


def test_a_rank_must_be_positive() -> None:
    with pytest.raises(UserError, match="at least 1, got 0"):
        lora_config(converted("uniattn"), rank=0)


def test_layers_without_a_w_c_need_no_saved_modules() -> None:
    assert lora_config(converted("llmdrop")).modules_to_save is None


@pytest.mark.parametrize("family", ["qwen3_next", "deepseek_v3", "gpt_oss"])
@torch.no_grad()
def test_what_stands_in_for_a_projection_gets_no_update(family: str) -> None:
    """Readers that run their family's own forward; what is left of a projection for several is not adapted either."""
    attending = shape(family).attention_layers
    plan = LayerPlan.stock(shape(family)).reuse([attending[2]], attending[1], compensated=True)
    model = with_random_compensations(apply_plan(stock(family), plan))
    ids = tokens(2, 12)
    expected = model(ids).logits
    adapted = get_peft_model(model, lora_config(model, rank=2)).eval()
    torch.testing.assert_close(adapted(ids).logits, expected, rtol=0, atol=1e-6)
    updated = {name.split(".lora_B")[0].split(".")[-1] for name, _ in adapted.named_parameters() if ".lora_B" in name}
    assert {"q_b_proj", "kv_b_proj", "o_proj"} <= updated or {"q_proj", "v_proj", "o_proj"} <= updated
    for name, parameter in adapted.named_parameters():
        if ".lora_B" in name:
            parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    changed = adapted(ids).logits
    assert (changed - expected).abs().max() > 1e-2
    torch.testing.assert_close(adapted.merge_and_unload()(ids).logits, changed, rtol=0, atol=1e-4)
