"""What a conversion would get wrong is refused, with the first true reason, before anything is changed."""

from __future__ import annotations

import copy
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.families import REFUSED, ROLES, every_type, outcomes
from benchmarks.families import row as table_row
from benchmarks.results.measurement import Measurement
from tests.tiny_models import MODES, SIZES, UNMODIFIED, random_model, stock, tokens
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)
from transformers.models.arcee import modeling_arcee

import uniattn_pl
from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.families.model_shape import shape_of
from uniattn_pl.modeling.conversion.convert import apply_plan, unmodified_copy

TABLE = Measurement.read(Path(__file__).parents[2] / "benchmarks" / "results" / "data" / "families.json")
SPARSE = "minimax_m3_sparse"
IDS = tokens(2, 10)
REUSE = UNMODIFIED.reuse([2], 1, compensated=False)


# The table of families: a few rows of it are made again.


@pytest.mark.parametrize(
    "family",
    [
        *("arcee", "olmo", "olmo3", "ministral3", "smollm3", "glm4_moe", "qwen3_moe", "nanochat", "granitemoehybrid"),
        *(
            "minimax_m3_vl_text",
            "mimo_v2_flash",
            "gpt_oss",
            "gemma4_text",
            "lfm2",
            "musicgen",
            "gemma3",
            "bart",
            "bert",
        ),
    ],
)
def test_a_family_is_exact_or_refused_as_the_table_says(family: str) -> None:
    """Against the stock model with another function in place of its eager attention."""
    cells = table_row(family, outcomes(family))
    assert cells.pop("key") == family
    assert cells == TABLE.rows[family]


def test_the_table_has_every_type_and_nothing_wrong() -> None:
    assert sorted(TABLE) == every_type()
    assert {cells[role] for cells in TABLE.rows.values() for role in ROLES} == {"exact", REFUSED, ""}


@pytest.mark.parametrize(
    ("family", "special", "reason"),
    [
        (
            "minimax_m3_vl_text",
            {"layer_types": ["full_attention", *["minimax_m3_sparse"] * 5]},
            r"indexer \(layer 1, 2",
        ),
        ("gpt2", {}, "its decoder keeps no list named 'layers' or 'block'"),
        ("stablelm", {}, "its decoder does not pass keyword arguments on to the attention"),
    ],
)
def test_every_layer_is_looked_at_and_the_first_true_obstacle_named(
    family: str, special: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=f"model type '{family}' is not supported: .*{reason}"):
        shape_of(AutoConfig.for_model(family, **SIZES | special))


def test_a_wrapper_names_the_text_model_inside() -> None:
    with pytest.raises(UserError, match=r"'moss_transcribe_diarize' is not supported: it wraps a text .* 'qwen3' \("):
        shape_of(AutoConfig.for_model("moss_transcribe_diarize"))


@pytest.mark.parametrize("family", ["dots3_note_text", "cohere_compass_text"])
def test_whatever_ends_an_inspection_is_one_message(family: str) -> None:
    with pytest.raises(UserError, match=f"'{family}' is not supported: inspecting it ends in [A-Z][A-Za-z]+: "):
        shape_of(AutoConfig.for_model(family))


# Families that are not tested, by their own weights and code.


def test_a_dropped_layer_whose_norm_adds_something_to_nothing_is_refused() -> None:
    """The norm goes with the attention; this one's bias would go as well."""
    model = random_model("flex_olmo")
    norm = nn.LayerNorm(SIZES["hidden_size"])
    nn.init.ones_(norm.bias)
    decoder_layers(model)[4].post_attention_layernorm = norm
    with pytest.raises(UserError, match=r"'flex_olmo': layers 4 compute .* \(drop\): dropped they"):
        apply_plan(model, UNMODIFIED.drop([1, 4], compensated=False))
    assert apply_plan(model, UNMODIFIED.drop([1], compensated=False)).layer_plan.operated == (1,)


def test_code_that_a_conversion_makes_decide_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only late tokens show it, and only another name than the stock kernels' brings it out."""
    stock_forward = modeling_arcee.ArceeAttention.forward

    @functools.wraps(stock_forward)
    def forward(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        output, attention_map = stock_forward(self, hidden_states, *args, **kwargs)
        if hash(self.config._attn_implementation) not in (hash("eager"), hash("sdpa")):
            output[:, 48:] *= 2
        return output, attention_map

    monkeypatch.setattr(modeling_arcee.ArceeAttention, "forward", forward)
    model = random_model("arcee")
    for convert in (lambda: apply_plan(model, REUSE), lambda: unmodified_copy(model)):
        with pytest.raises(UserError, match="'arcee': it computes something else as soon as"):
            convert()
    assert model.config.model_type == "arcee"


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_the_kernels_name_is_the_stock_one_to_whoever_asks(kernel: str) -> None:
    model = apply_plan(stock("llama"), REUSE)
    model.set_attn_implementation(kernel)
    for config in (model.config, copy.deepcopy(model.config), pickle.loads(pickle.dumps(model.config))):
        name = config._attn_implementation
        assert name == kernel
        assert name in ("eager", "sdpa")
        assert name != "flash_attention_2"
        assert (name != kernel) is False
        assert {f"uniattn_{kernel}": True}[name]


@torch.no_grad()
@pytest.mark.parametrize("rope", [{"rope_type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}])
def test_rotations_that_look_at_positions_do_not_end_an_inspection(rope: dict[str, Any]) -> None:
    model = random_model("llama", rope_parameters={**rope, "rope_theta": 10000.0}).eval()
    expected = model(IDS).logits
    torch.testing.assert_close(unmodified_copy(model)(IDS).logits, expected)


# What is registered for a whole process.


def test_base_models_other_heads_and_subclasses_are_refused_and_nothing_is_registered(tmp_path: Path) -> None:
    class Mine(LlamaForCausalLM):
        pass

    config = LlamaConfig(**SIZES)
    for model in (LlamaModel(config), AutoModelForSequenceClassification.from_config(config), Mine(config)):
        with pytest.raises(UserError, match=rf"a {type(model).__name__} cannot be converted, .*\(LlamaForCausalLM\)"):
            apply_plan(model, REUSE)
        assert model.config.model_type == "llama"
    apply_plan(stock("llama"), REUSE).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, LlamaForCausalLM)
    assert not isinstance(loaded, Mine)
    assert uniattn_pl.load_model(str(tmp_path)).layer_plan == REUSE


# The maps of a converted model.

MIXED = UNMODIFIED.drop([1], compensated=True).reuse([3, 4], 2, compensated=False).share_kv([5], 0, compensated=False)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["auto", "replay"])
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3"])
def test_entry_i_of_the_attentions_is_layer_is(family: str, mode: str) -> None:
    plan = UNMODIFIED.drop([1], compensated=True).reuse([4], 2, compensated=False) if family != "llama" else MIXED
    model = apply_plan(stock(family), plan)
    model.set_attn_implementation("eager")
    model.config.reuse_mode = mode
    attentions = model(IDS, output_attentions=True).attentions
    assert len(attentions) == len(plan.rows)
    assert [entry is None for entry in attentions] == [row.role == "drop" for row in plan.rows]
    for row in plan.rows:
        if row.role == "reuse":
            torch.testing.assert_close(attentions[row.index], attentions[row.source])
    as_tuple = model(IDS, output_attentions=True, return_dict=False)
    assert [entry is None for entry in as_tuple[-1]] == [entry is None for entry in attentions]


@torch.no_grad()
def test_kernels_without_maps_give_none_for_every_layer() -> None:
    """A map that one was computed for lies in memory that the next forward writes to."""
    model = apply_plan(stock("llama"), REUSE)
    assert model(IDS, output_attentions=True).attentions == (None,) * len(REUSE.rows)


@torch.no_grad()
@pytest.mark.parametrize("mode", MODES)
def test_a_reader_of_other_heads_shows_the_map_it_used(mode: str) -> None:
    heads = (2, 0, 3, 1)
    model = apply_plan(stock("llama"), REUSE.align_heads({2: heads}))
    model.set_attn_implementation("eager")
    model.config.reuse_mode = mode
    attentions = model(IDS, output_attentions=True).attentions
    torch.testing.assert_close(attentions[2], attentions[1][:, list(heads)])
