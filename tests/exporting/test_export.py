"""Exported folders: what they hold, and that they load where this package is not."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.modeling.test_convert import PLANS, converted
from tests.parity import stock_llama
from transformers import PreTrainedModel

from uniattn_pl.config import load_config
from uniattn_pl.config.loaded_config import plain_config
from uniattn_pl.errors import UserError
from uniattn_pl.exporting.card_origin import data_sets, front_matter
from uniattn_pl.exporting.export import export
from uniattn_pl.families.catalogue import byte_tokenizer
from uniattn_pl.modeling.conversion.convert import apply_plan
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.plan.drawing import draw
from uniattn_pl.resilience.manifest import Manifest

WITHOUT_PACKAGE = "import sys; sys.modules['uniattn_pl'] = None\n"
PRINT_LOGITS = """
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({folder!r}, trust_remote_code=True)
AutoTokenizer.from_pretrained({folder!r})
with torch.no_grad():
    output = model(torch.arange(3, 20)[None], use_cache=True)
layers = [type(layer).__name__ for layer in output.past_key_values.layers]
torch.save({{"logits": output.logits, "cache": layers}}, {file!r})
"""


def saved(model: PreTrainedModel, folder: Path) -> Path:
    tokenizer = byte_tokenizer()
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_python(code: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A fresh process, not in the checkout."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=cwd)


def test_a_card_has_the_plan_and_the_costs(tmp_path: Path) -> None:
    source, target = saved(converted("uniattn"), tmp_path / "run"), tmp_path / "exported"
    export(source, target)
    card = (target / "README.md").read_text()
    assert draw(PLANS["uniattn"]) in card
    assert "81.25%" in card
    # 64 tokens, 8 layers of K and V less 3 K, 2 heads of 16 in float32
    assert f"{64 * (2 * 8 - 3) * 2 * 16 * 4:,} bytes" in card
    assert json.loads((target / "config.json").read_text())["model_type"] == "uniattn_llama"
    with pytest.raises(UserError, match="exists"):
        export(source, target)
    with pytest.raises(UserError, match="inside the model folder"):
        export(source, source / "inner")
    (target / "stale.txt").write_text("of the former export")
    export(source, target, overwrite=True)
    assert (target / "README.md").read_text() == card
    assert not (target / "stale.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exported", "run"]


def with_biases() -> PreTrainedModel:
    model = apply_plan(stock_llama(), PLANS["uniattn"].add_bias())
    for row in model.layer_plan.rows:  # type: ignore[union-attr]
        if row.compensated:
            torch.nn.init.normal_(model.get_submodule(f"model.layers.{row.index}.self_attn.w_c").bias)
    return model


@pytest.mark.parametrize("name", ["uniattn", "mixed", "biased"])
def test_a_standalone_folder_loads_without_the_package(name: str, tmp_path: Path) -> None:
    model = with_biases() if name == "biased" else converted(name)
    folder = export(saved(model, tmp_path / "run"), tmp_path / "exported", standalone=True)
    assert "trust_remote_code=True" in (folder / "README.md").read_text()
    file = tmp_path / "output.pt"
    code = WITHOUT_PACKAGE + PRINT_LOGITS.format(folder=str(folder), file=str(file))
    process = run_python(code, tmp_path)
    assert process.returncode == 0, process.stderr
    output = torch.load(file, weights_only=True)
    with torch.no_grad():
        expected = load_folder(folder)(torch.arange(3, 20)[None], use_cache=True)
    assert torch.equal(output["logits"], expected.logits)
    assert output["cache"] == [type(layer).__name__ for layer in expected.past_key_values.layers]
    assert "ValueOnlyLayer" in output["cache"]


def test_the_snippet_of_a_standalone_folder_s_card_asks_nothing(tmp_path: Path) -> None:
    folder = export(saved(converted("uniattn"), tmp_path / "run"), tmp_path / "exported", standalone=True)
    (snippet,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    asks = "import builtins\nbuiltins.input = lambda *_: (_ for _ in ()).throw(SystemExit('it asked'))\n"
    process = run_python(f"{WITHOUT_PACKAGE}{asks}{snippet.replace('this folder', str(folder))}", tmp_path)
    assert process.returncode == 0, process.stderr
    assert "Do you wish to run" not in process.stdout + process.stderr


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_files_are_readable_by_those_that_the_umask_lets(umask: int, tmp_path: Path) -> None:
    source, before = saved(converted("uniattn"), tmp_path / "run"), os.umask(umask)
    try:
        folder = export(source, tmp_path / "exported", standalone=True)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}
    assert {"model.safetensors", "tokenizer.json", "README.md", "modeling_uniattn.py"} <= modes.keys()
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~umask


def test_a_card_s_first_lines_tell_the_hub_where_a_model_comes_from() -> None:
    def lines(source: str, *words: str) -> list[str]:
        config = plain_config(load_config([], [f"model.source={source}", "architecture.name=uniattn", *words]))
        return front_matter("text-generation", Manifest(config, phase="done")).splitlines()

    named = lines("smollm2-135m", "data.num_samples=300")
    assert "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in named
    assert "license: apache-2.0" in named
    assert "tags: [uniattn_pl, uniattn]" in named
    assert "datasets:" not in named
    of_hub = lines("meta-llama/Llama-3.1-8B", "data.source=allenai/tulu-3-sft-mixture")
    assert of_hub[of_hub.index("datasets:") + 1] == "- allenai/tulu-3-sft-mixture"
    assert "base_model: meta-llama/Llama-3.1-8B" in of_hub
    assert not [line for line in of_hub if line.startswith("license")], "nobody here knows it"
    config = plain_config(load_config([], ["model.source=tiny-llama"]))
    config["data"]["source"] = "somewhere/pmc_llama_instructions_1000.json"
    assert data_sets(config["data"]) == ["axiong/pmc_llama_instructions"]
    assert "base_model" not in front_matter("text-generation", Manifest(config))


def test_a_standalone_folder_does_not_run_its_code_unasked(tmp_path: Path) -> None:
    folder = export(saved(converted("uniattn"), tmp_path / "run"), tmp_path / "exported", standalone=True)
    code = f"{WITHOUT_PACKAGE}from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(folder)!r})"
    process = run_python(code, tmp_path)
    assert process.returncode != 0
    assert "trust_remote_code" in process.stderr


def test_a_stock_model_needs_no_code_of_its_own(tmp_path: Path) -> None:
    source = saved(stock_llama(), tmp_path / "run")
    with pytest.raises(UserError, match="has no layer plan: it loads anywhere"):
        export(source, tmp_path / "exported", standalone=True)
    assert not (tmp_path / "exported").exists()


def test_more_layers_can_be_dropped_on_the_way(tmp_path: Path) -> None:
    source = saved(converted("uniattn"), tmp_path / "run")
    loaded = load_folder(export(source, tmp_path / "exported", drop=[7]))
    assert [row.role for row in loaded.layer_plan.rows[5:]] == ["reuse", "reuse", "drop"]
    with pytest.raises(UserError, match="layer 5 reads from layer 4, whose attention is dropped"):
        export(source, tmp_path / "other", drop=[4])


def test_lm_eval_scores_an_exported_model_with_its_hf_type(tmp_path: Path) -> None:
    """With the package in the process, and without it through the folder's own code."""
    pytest.importorskip("lm_eval", reason="the package lm_eval is not installed")
    folder = export(saved(converted("uniattn"), tmp_path / "run"), tmp_path / "exported", standalone=True)
    score = f"""
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
model = HFLM(pretrained={str(folder)!r}, device="cpu", dtype="float32", trust_remote_code=TRUST)
requests = [Instance("loglikelihood", {{}}, ("The heart", " beats"), 0)]
print("score", model.loglikelihood(requests, disable_tqdm=True)[0][0], type(model.model).__name__)
"""
    outputs = []
    for start in ("import uniattn_pl; TRUST = False\n", WITHOUT_PACKAGE + "TRUST = True\n"):
        process = run_python(start + score, tmp_path)
        assert process.returncode == 0, process.stderr
        outputs.append(next(line for line in process.stdout.splitlines() if line.startswith("score")).split())
    tokenizer, model = byte_tokenizer(), load_folder(folder)
    context, continuation = (tokenizer(text, return_tensors="pt")["input_ids"] for text in ("The heart", " beats"))
    with torch.no_grad():
        logits = model(torch.cat([context, continuation], dim=1)).logits[0, context.shape[1] - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, continuation[0][:, None]).sum().item()
    assert [output[2] for output in outputs] == ["UniAttnLlamaForCausalLM"] * 2
    assert [float(output[1]) for output in outputs] == pytest.approx([expected] * 2, abs=1e-4)
