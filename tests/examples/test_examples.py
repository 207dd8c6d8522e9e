"""The two examples run as somebody would run them, and what they print and save is what they say."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tests.docs.documented import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

import uniattn_pl
from uniattn_pl.data.embedded import embedded_rows

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OWN_TRAINER, ONE_STEP = ROOT / "examples" / "own_trainer.py", "own_trainer, one step"


@dataclass(frozen=True)
class Finished:
    """An example after its run: all it printed, and the folder it saved."""

    printed: str
    output: Path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Finished]:
    """Both examples, one of them with one step too, run side by side; offline, by tests/conftest.py."""
    uniattn_pl.load_model("tiny-llama")  # made now, so that they do not both make it
    folder, started = tmp_path_factory.mktemp("examples"), {}
    runs = [(script, script.stem, "3") for script in EXAMPLES] + [(OWN_TRAINER, ONE_STEP, "1")]
    for script, name, steps in runs:
        words = [str(script), "--model", "tiny-llama", "--steps", steps, "--output", str(folder / name)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        started[name] = subprocess.Popen([sys.executable, *words], cwd=folder, env=environment, **pipes)
    ended = {name: (*process.communicate(), process.returncode) for name, process in started.items()}
    for _, errors, code in ended.values():
        assert code == 0, errors
    return {name: Finished(printed, folder / name) for name, (printed, _, _) in ended.items()}


both = pytest.mark.parametrize("name", [script.stem for script in EXAMPLES])


@both
def test_calibration_repairs(name: str, finished: dict[str, Finished]) -> None:
    """The report has a line per compensated layer; held out, each has less error with its W_c than without."""
    errors = re.findall(r"^ *(\d+|overall) +(\d+\.\d+) +(\d+\.\d+) +\d", finished[name].printed, re.MULTILINE)
    assert [label for label, _, _ in errors] == ["7", "6", "5", "overall"]
    for label, before, after in errors:
        assert float(after) < float(before), label


@both
def test_the_saved_folder_generates_what_was_printed(name: str, finished: dict[str, Finished]) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished[name].output)
    tokenizer = AutoTokenizer.from_pretrained(finished[name].output)
    assert model.layer_plan.compensated == (5, 6, 7)
    row = embedded_rows(1)[0]
    prompt = torch.tensor([tokenizer(f"{row.instruction}\n\n{row.input}\n\nAnswer:\n").input_ids])
    output = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False, pad_token_id=0
    )
    printed = re.search(r"^tokens: (\[.*\])$", finished[name].printed, re.MULTILINE)
    assert printed
    assert output[0, prompt.shape[1] :].tolist() == ast.literal_eval(printed[1])


@both
def test_training_has_moved_all_weights(name: str, finished: dict[str, Finished]) -> None:
    trained = AutoModelForCausalLM.from_pretrained(finished[name].output).state_dict()
    stock = uniattn_pl.load_model("tiny-llama", dtype="float32").state_dict()
    for key, weight in trained.items():
        assert key.endswith("w_c.weight") or not torch.equal(weight, stock[key]), key


def test_minimal_prints_costs_and_losses_side_by_side(finished: dict[str, Finished]) -> None:
    cached = dict(re.findall(r"^KV cache of 512 tokens, (.*): ([\d,]+) B$", finished["minimal"].printed, re.MULTILINE))
    # 8 layers of K and V, 512 x 2 heads x 8 in float32; three of them keep no K
    of_a_layer = 512 * 2 * 8 * 4
    assert cached == {"original": f"{16 * of_a_layer:,}", "this model": f"{13 * of_a_layer:,}"}
    found = re.findall(r"^held-out loss, (.*): ([\d.]+)$", finished["minimal"].printed, re.MULTILINE)
    losses = {name: float(value) for name, value in found}
    assert list(losses) == ["original", "unified, no W_c", "calibrated", "trained"]
    assert losses["trained"] < losses["calibrated"] < losses["unified, no W_c"]
    assert "loaded again it generates the same tokens: True" in finished["minimal"].printed


def test_stage_1_trains_the_compensations_alone(finished: dict[str, Finished]) -> None:
    output = finished["own_trainer"].output
    stage1 = AutoModelForCausalLM.from_pretrained(output / "stage1").state_dict()
    stock = uniattn_pl.load_model("tiny-llama", dtype="float32").state_dict()
    compensations = [name for name in stage1 if ".self_attn.w_c." in name]
    assert len(compensations) == 3
    one_step = AutoModelForCausalLM.from_pretrained(finished[ONE_STEP].output / "stage1").state_dict()
    for name in compensations:
        assert not torch.equal(stage1[name], one_step[name]), "calibrated alike, then trained for more steps"
    for name in stage1.keys() - set(compensations):
        assert torch.equal(stage1[name], stock[name]), name
    (record,) = json.loads((output / "provenance.json").read_text(encoding="utf-8"))
    assert record["config"] == {"model": "tiny-llama", "steps": 3, "output": str(output)}


def test_there_are_two_and_the_minimal_one_fits_on_a_page() -> None:
    assert [path.stem for path in EXAMPLES] == ["minimal", "own_trainer"]
    lines = {path.stem: len(path.read_text(encoding="utf-8").splitlines()) for path in EXAMPLES}
    assert lines["minimal"] <= 120
    assert lines["own_trainer"] <= 150
