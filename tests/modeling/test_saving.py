"""What a plan's model is on disk: architectures, whole, in shards and in bfloat16, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.tiny_models import cases, converted, plan_of, shape, tokens
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

import uniattn_pl  # noqa: F401  registers the model types
from uniattn_pl.errors import UserError
from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
from uniattn_pl.plan import costs


def assert_same_weights(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    states = found.state_dict(), expected.state_dict()
    assert states[0].keys() == states[1].keys()
    different = [name for name, tensor in states[1].items() if not torch.equal(states[0][name], tensor)]
    assert not different


@cases(["llama", "gemma3_text", "phi3"], modes=False)  # the others, whole: tests/families/
@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(family: str, architecture: str, tmp_path: Path) -> None:
    model, plan, ids = converted(family, architecture), plan_of(family, architecture), tokens(2, 9)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == costs.parameters(plan, shape(family))
    model.save_pretrained(tmp_path / "whole")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert type(loaded) is type(model)
    assert loaded.layer_plan == plan
    assert loaded.config._attn_implementation == model.config._attn_implementation
    assert_same_weights(loaded, model)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shards = sorted((tmp_path / "shards").glob("*.safetensors"))
    assert len(shards) > 2
    for shard in shards:
        with safe_open(shard, "pt") as file:
            assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    in_halves = AutoModelForCausalLM.from_pretrained(tmp_path / "shards", dtype="auto")
    assert in_halves.dtype == torch.bfloat16
    assert_same_weights(in_halves, model)
    # Not `model` itself: casting a model casts its rotary tables as well, loading one does not.
    cast = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    assert torch.equal(in_halves(ids).logits, cast(ids).logits)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@torch.no_grad()
def test_automodel_loads_the_base_model_and_a_head_for_classification_is_refused(family: str, tmp_path: Path) -> None:
    model, ids = converted(family, "uniattn"), tokens(2, 9)
    model.save_pretrained(tmp_path)
    base = AutoModel.from_pretrained(tmp_path)
    assert base.layer_plan == model.layer_plan
    assert torch.equal(base(ids).last_hidden_state, model.base_model(ids).last_hidden_state)
    assert kv_cache_bytes(base(ids).past_key_values) == kv_cache_bytes(model(ids).past_key_values)
    made = AutoModel.from_config(model.config)
    assert made.state_dict().keys() == base.state_dict().keys()
    with pytest.raises(UserError, match=f"uniattn_{family} has no head for classification.*Load it with AutoModel"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path)
