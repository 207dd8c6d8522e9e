"""DeciLM folders: what engines read from them. tests/serving/vllm has vLLM itself answer from one."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tests.exporting.test_export import saved
from tests.tiny_models import UNMODIFIED, random_model, with_random_compensations
from transformers import PreTrainedModel

from uniattn_pl import cli
from uniattn_pl.errors import UserError
from uniattn_pl.exporting.decilm.decilm_folder import padded_width
from uniattn_pl.exporting.decilm.export_decilm import export_decilm
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.plan import LayerPlan

PLAN = (
    UNMODIFIED.merge_heads([1], 1, compensated=False)
    .skip([2], compensated=False)
    .drop([3], compensated=False)
    .drop([4], compensated=True)
)
# In a process of its own that does not know this package, as an engine asks for a config.
READ_CONFIG = """
import json, sys
sys.modules["uniattn_pl"] = None
from transformers import AutoConfig
config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps([
    [block.attention.no_op, block.attention.replace_with_linear, block.attention.n_heads_in_group, block.ffn.no_op,
     block.ffn.ffn_mult] for block in config.block_configs
] + [config.model_type, config.num_hidden_layers, config.rope_parameters["rope_theta"]]))
"""


def planned(plan: LayerPlan, family: str = "llama", **special: Any) -> PreTrainedModel:
    return with_random_compensations(apply_plan(random_model(family, **special), plan))


@given(st.integers(1, 300), st.integers(1, 4000))
def test_engines_come_to_the_width_that_is_written(size: int, width: int) -> None:
    hidden_size, padded = 8 * size, padded_width(width)
    ffn_mult = 1.5 * padded / hidden_size
    for given_mult in (ffn_mult, round(ffn_mult, 6)):  # as MLX-LM rounds it
        assert math.ceil(int(2 * given_mult * hidden_size / 3) / 256) * 256 == padded
    assert 0 <= padded - width < 256


def test_the_folder_has_a_block_per_layer_that_is_left_with_the_weights_that_it_needs(tmp_path: Path) -> None:
    model = planned(PLAN)
    obstacles = export_decilm(saved(model, tmp_path / "model"), tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", READ_CONFIG, str(tmp_path / "out")], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    *blocks, model_type, layers, theta = json.loads(done.stdout.splitlines()[-1])
    mult = 1.5 * 256 / 32
    assert (model_type, layers, theta) == ("nemotron-nas", 5, 10000.0)
    assert blocks == [
        [False, False, 2, False, mult],
        [False, False, 4, False, mult],
        [True, False, None, False, mult],  # layer 3: layer 2 is not there
        [False, True, None, False, mult],
        [False, False, 2, False, mult],
    ]
    weights = load_file(tmp_path / "out" / "model.safetensors")
    own = model.state_dict()
    assert torch.equal(
        weights["model.layers.3.self_attn.linear_attn.weight"], own["model.layers.4.self_attn.w_c.weight"]
    )
    assert torch.equal(weights["model.layers.4.self_attn.q_proj.weight"], own["model.layers.5.self_attn.q_proj.weight"])
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (8, 32)
    gate, down = weights["model.layers.2.mlp.gate_proj.weight"], weights["model.layers.2.mlp.down_proj.weight"]
    assert (gate.shape, down.shape) == ((256, 32), (32, 256))
    assert torch.equal(gate[:48], own["model.layers.3.mlp.gate_proj.weight"])
    assert not gate[48:].any()
    assert not down[:, 48:].any()
    assert {name.rpartition(".layers.2.")[2] for name in weights if ".layers.2." in name} == {
        "post_attention_layernorm.weight",
        *(f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")),
    }
    assert not obstacles["TensorRT-LLM"]
    assert "no linear layers (layer 4)" in obstacles["vLLM"][0]
    assert "- TensorRT-LLM: yes" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_every_engine_serves_plain_dropped_layers_and_none_of_these_a_dropped_first_one(tmp_path: Path) -> None:
    plain = export_decilm(saved(planned(UNMODIFIED.drop([2], compensated=False)), tmp_path / "a"), tmp_path / "b")
    assert not any(plain.values())
    first = export_decilm(saved(planned(UNMODIFIED.drop([0], compensated=False)), tmp_path / "c"), tmp_path / "d")
    assert [engine for engine, reasons in first.items() if reasons] == ["vLLM", "SGLang"]
    biases = export_decilm(saved(planned(UNMODIFIED, "qwen2"), tmp_path / "e"), tmp_path / "f")
    assert [engine for engine, reasons in biases.items() if reasons] == ["TensorRT-LLM", "MLX-LM", "exllamav3"]
    assert json.loads((tmp_path / "f" / "config.json").read_text())["qkv_bias"] is True


def test_a_family_s_own_config_says_what_is_needed_and_what_engines_leave_out(tmp_path: Path) -> None:
    model = planned(UNMODIFIED, "qwen2")
    source = saved(model, tmp_path / "qwen2")
    own = json.loads((source / "config.json").read_text())
    del own["head_dim"]  # as Qwen2's are: d / H
    (source / "config.json").write_text(json.dumps(own))
    assert export_decilm(source, tmp_path / "a")["vLLM"] == []
    assert json.loads((tmp_path / "a" / "config.json").read_text())["head_dim"] == 8
    biased = export_decilm(saved(planned(UNMODIFIED, mlp_bias=True), tmp_path / "b"), tmp_path / "c")
    assert [engine for engine, reasons in biased.items() if reasons] == ["SGLang", "TensorRT-LLM", "exllamav3"]


@pytest.mark.parametrize(
    ("plan", "family", "message"),
    [
        (UNMODIFIED.reuse([2], 1, compensated=False), "llama", "layer 2: the DeciLM format has no attention map.*vLLM"),
        (UNMODIFIED.drop([2, 3], compensated=True).add_bias(), "llama", "layers 2-3: .*no bias.*gguf takes it"),
        (UNMODIFIED, "qwen3", "qwen3 model .*norms of queries and keys"),
    ],
)
def test_what_the_format_cannot_say_is_refused(tmp_path: Path, plan: LayerPlan, family: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        export_decilm(saved(planned(plan, family), tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_says_which_engines_take_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(planned(PLAN), tmp_path / "model")
    words = ["export", "--from", "model", "--to", "out", "--format"]
    assert cli.main([*words, "decilm", "--dry-run"]) == 0
    assert not Path("out").exists()
    assert cli.main([*words, "decilm"]) == 0
    assert "- SGLang: no: it has no linear layers (layer 4)" in capsys.readouterr().out
    assert cli.main([*words, "declm", "--dtype", "bf16"]) == 2
    error = capsys.readouterr().err
    assert "--format 'declm' is none. Did you mean 'decilm'? Formats: folder, gguf, decilm, onnx, pt2." in error
    assert "--dtype is of --format gguf" in error
