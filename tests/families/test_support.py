"""`list families` says what the code does, at once; with a model, what can be made of it and why not the rest."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.tiny_models import LAYERS, SIZES, SPECIAL, random_model
from transformers import AutoConfig

from uniattn_pl.cli import main
from uniattn_pl.families.inspection import FAMILIES
from uniattn_pl.modeling.conversion.family_support import architecture_roles, family_support, kept_support

AGAIN = "run python -m benchmarks.support"


def test_the_kept_table_is_of_these_families_and_architectures() -> None:
    kept = kept_support()
    assert {family: row["models"] for family, row in kept["families"].items()} == FAMILIES, AGAIN
    assert kept["architectures"] == architecture_roles(), AGAIN
    assert kept["transformers"] == version("transformers"), AGAIN


@pytest.mark.parametrize("family", ["gemma2", "smollm3", "granitemoehybrid"])
def test_it_says_what_is_found_anew(family: str) -> None:
    assert kept_support()["families"][family] == family_support(family), AGAIN


def test_it_is_printed_without_loading_anything_heavy() -> None:
    code = "import sys; from uniattn_pl.cli import main; main(['list', 'families']); print('torch' in sys.modules)"
    lines = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
    assert lines[-1] == "False"
    (mixtral,) = (line.split() for line in lines if line.split()[:1] == ["mixtral"])
    assert mixtral == ["mixtral", "Mixtral", "eager,", "sdpa", "-", *["yes"] * 6]


def answers(capsys: pytest.CaptureFixture[str], source: str) -> dict[str, str]:
    """What is printed of a model: by the first word of a line, the rest."""
    assert main(["list", "families", "--model", source]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1] if len(words) > 1 else "" for words in lines if words}


def test_what_can_be_made_of_a_model_is_said_by_role_and_by_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    found = answers(capsys, "tiny-llama")
    assert {found[role] for role in ("reuse", "share_kv", "drop", "skip", "heads", "window", "gqa")} == {"yes"}


def test_a_config_is_enough_and_its_options_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one_head = {"num_key_value_heads": 1, "attention_dropout": 0.0}
    AutoConfig.for_model("gemma2", **SIZES | SPECIAL["gemma2"] | one_head).save_pretrained(tmp_path)
    found = answers(capsys, str(tmp_path / "config.json"))
    assert found["heads"].startswith("no")
    assert "1 KV heads" in found["heads"]
    assert found["reuse"] == "yes"
    AutoConfig.for_model("llama", **SIZES | {"attention_dropout": 0.1}).save_pretrained(tmp_path)
    assert "attention_dropout is 0.1" in answers(capsys, str(tmp_path))["reuse"]


def test_a_family_that_cannot_be_converted_is_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    AutoConfig.for_model("gpt2", n_layer=LAYERS).save_pretrained(tmp_path)
    assert main(["list", "families", "--model", str(tmp_path)]) == 0
    assert "no plan is possible.\n  model type 'gpt2' is not supported" in capsys.readouterr().out


def test_a_converted_folder_is_answered_as_its_stock_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from uniattn_pl.modeling.conversion.convert import apply_architecture

    apply_architecture(random_model("llama"), "llmdrop", layers=[2]).save_pretrained(tmp_path)
    assert answers(capsys, str(tmp_path))["drop"] == "yes"


def test_a_model_that_is_not_there_and_another_topic_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "families", "--model", "tiny-lama"]) == 2
    assert "Did you mean 'tiny-llama'?" in capsys.readouterr().err
    assert main(["list", "models", "--model", "tiny-llama"]) == 2
    assert "--model is for `list families`" in capsys.readouterr().err
