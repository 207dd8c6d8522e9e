"""The command line as a user meets it: help without heavy imports, exit codes, listings, plans, dry runs."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uniattn_pl.architectures import available
from uniattn_pl.cli import main
from uniattn_pl.commands import COMMANDS
from uniattn_pl.config.sections.calibration_section import INITIALISERS
from uniattn_pl.families.catalogue import named_model

TINY = ["model.source=tiny-llama", "architecture.num_superblocks=1"]
HEAVY = ("torch", "transformers", "lightning", "mlflow", "datasets", "pandas")


@pytest.mark.parametrize("words", [[], ["--help"], *([command, "--help"] for command in COMMANDS)], ids=" ".join)
def test_help_has_an_example_and_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from uniattn_pl.cli import main\n"
        f"code = main({words!r})\n"
        f"sys.exit(code or [name for name in {HEAVY} if name in sys.modules] or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "example:" in done.stdout
    assert "uniattn-pl" in done.stdout


def test_loading_a_config_imports_nothing_heavy() -> None:
    code = (
        "import sys; from uniattn_pl.cli import main\n"
        "code = main(['fit', '--config', 'experiments/quickstart.yaml', '--print-config'])\n"
        f"sys.exit(code or [name for name in {HEAVY} if name in sys.modules] or 0)"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stderr
    assert "name: quickstart  # experiments/quickstart.yaml:" in done.stdout


def test_help_names_exactly_the_commands_that_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [word for word in COMMANDS if f"\n  {word} " in printed] == list(COMMANDS)


def test_overrides_may_stand_anywhere(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "seed=1", "--print-config", "name=between", "--batch-size", "2", "data.max_length=64"]) == 0
    printed = capsys.readouterr().out
    assert "seed: 1  # override" in printed
    assert "name: between" in printed
    assert "max_length: 64" in printed


def test_list_shows_what_the_code_enforces(capsys: pytest.CaptureFixture[str]) -> None:
    for topic, names in (("architectures", available()), ("initialisers", INITIALISERS), ("models", ["tiny-llama"])):
        assert main(["list", topic]) == 0
        printed = capsys.readouterr().out
        assert all(f"\n  {name} " in printed for name in names)


def test_plan_draws_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, "--length", "128", "--batch-size", "3"]) == 0
    printed = capsys.readouterr().out
    assert "map of 4" in printed
    assert "81.2%" in printed  # 8 layers of K and V, less 3 K
    assert "stage 2" in printed


def test_plan_needs_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    gone = ["data.source=gone.jsonl", "evaluation.text=gone.txt", "evaluation.probes=[positions]"]
    assert main(["plan", *TINY, *gone]) == 0
    assert "map of 4" in capsys.readouterr().out
    capsys.readouterr()
    assert main(["plan", *TINY, "data.source=${oc.env:NOT_SET,gone}.jsonl", "--print-config"]) == 0
    assert "source: gone.jsonl" in capsys.readouterr().out, "what is not read is resolved all the same"
    assert main(["plan", *TINY, *gone, "data.max_length=-1", "data.sorce=x"]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == 2
    assert "gone" not in said


def test_plan_shares_training_memory_over_gpus(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY]) == 0
    assert "Training memory of one device" in capsys.readouterr().out
    assert main(["plan", *TINY, "--gpus", "8"]) == 0
    assert "Training memory of each of 8 devices that share weights (fsdp)" in capsys.readouterr().out
    assert main(["plan", *TINY, "--gpus", "0"]) == 2


def test_a_bug_shows_its_traceback_and_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("uniattn_pl.commands.list_command._initialisers", lambda: 1 / 0)
    assert main(["list", "initialisers"]) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_an_interrupt_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uniattn_pl.commands.list_command._initialisers", interrupt)
    assert main(["list", "initialisers"]) == 130


@pytest.mark.parametrize(
    "argument", [["--from", "runs/tiny"], ["--from", "runs/tiny/final"], ["--config", "tiny.yaml"]]
)
def test_generate_and_export_find_a_run(
    argument: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(named_model("tiny-llama"), tmp_path / "runs/tiny/final")
    (tmp_path / "tiny.yaml").write_text("name: tiny")
    assert main(["generate", *argument, "--prompt", "x", "--dry-run"]) == 0
    assert main(["export", *argument, "--to", "out", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("runs/tiny/final") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("thesis", "'thesis' is not empty and holds no model"),
        ("runs", "'runs' contains the model folder"),
        ("runs/tiny/final", "is the folder to export itself"),
        ("runs/tiny/final/copy", "lies inside the model folder"),
        ("thesis/text.tex", "is a file"),
    ],
)
def test_export_overwrites_nothing_but_another_model(
    target: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/tiny/final/config.json", "runs/config.json", "thesis/text.tex"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", "--from", "runs/tiny", "--to", target, "--overwrite"]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
