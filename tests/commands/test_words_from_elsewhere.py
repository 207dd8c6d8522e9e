"""What people type who come from other programs is understood, or answered with the right form."""

from __future__ import annotations

from pathlib import Path

import pytest

from uniattn_pl.cli import main

TINY = "model: {source: tiny-llama}\nname: mine\n"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("exp.yaml").write_text(TINY)
    Path("more.yaml").write_text("name: other")
    return "exp.yaml"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["exp.yaml"], "name: mine  # exp.yaml:2"),
        (["exp.yaml", "more.yaml"], "name: other  # more.yaml:1"),
        (["more.yaml", "--config", "exp.yaml"], "name: mine  # exp.yaml:2"),
        (["--training.batch_size=8", "exp.yaml"], "batch_size: 8  # override 'training.batch_size=8'"),
        (["--training.batch_size", "8", "exp.yaml"], "batch_size: 8  # override 'training.batch_size=8'"),
        (["--training.stage1.max-steps=8"], "max_steps: 8  # override"),
        (["exp.yaml", "--seed=3"], "seed: 3  # override 'seed=3'"),
        (["exp.yaml", "evaluation.text=exp.yaml"], "text: exp.yaml  # override"),
    ],
)
def test_files_and_keys_in_other_forms(
    words: list[str], shown: str, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *words, "--print-config"]) == 0
    assert shown in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--training.batch_sise=8"], "Did you mean 'training.batch_size'?"),
        (["--num_superblocks=2"], "written without dashes: architecture.num_superblocks=..."),
        (["--learning_rate", "1"], "training.stage1.learning_rate=... or training.stage2.learning_rate=..."),
        (["--training.batch_size"], "expected key.path=value"),
        (["--batch_size", "8"], "Did you mean '--batch-size'?"),
        (["gone.yaml"], "--config 'gone.yaml' does not exist"),
        (
            ["learning_rate=1"],
            "Did you mean 'calibration.refine.learning_rate' or 'training.stage1.learning_rate' or "
            "'training.stage2.learning_rate'?",
        ),
        (["training.learning_rate=1"], "mean 'training.stage1.learning_rate' or 'training.stage2.learning_rate' or"),
        (["learning_rat=1"], "'training.stage2.learning_rate'?"),
    ],
)
def test_the_right_form_is_named(words: list[str], message: str, file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", file, *words]) == 2
    assert message in capsys.readouterr().err


def test_the_value_of_an_option_is_not_taken_for_a_config(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", file, "--to", "more.yaml", "--print-config"]) == 0
    assert "name: mine" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["help", "plan"], ["plan", "help"], ["plan", "--help"]])
def test_help_is_given_by_every_name(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "usage: uniattn-pl plan " in capsys.readouterr().out


def test_help_alone_is_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help"]) == 0
    assert "commands:\n  fit " in capsys.readouterr().out


def test_help_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["help"]) == 0
    assert main(["list", "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
