"""`--from` a run: its own config and rows stand behind it, and each of its folders works or says which one does."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from tests.tiny_fit import BASE

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.training import fit as fit_module
from uniattn_pl.training.fit import fit

CONFIG = (
    BASE.replace("texts: 0", "texts: 2")
    + """
training:
  batch_size: 2
  micro_batch_size: 2
  checkpoint_every_steps: 1
  stage1: {max_steps: 1}
  stage2: {max_steps: 1}
  lora: {enabled: true, rank: 2}
tracking: {uri: "sqlite:///store.db", artifact_location: artifacts, experiment: own}
"""
)
HELD_OUT = "evaluation.probes=[held_out]"


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished fit in runs/tiny, and one that was killed behind stage 1 in runs/begun."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": "1 2 3"} for n in range(6)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fit(load_config(["tiny.yaml"]))

        def killed(stage: object, *_: object) -> bool:
            raise KeyboardInterrupt

        patch.setattr(fit_module, "clear_checkpoints", killed)
        assert main(["fit", "--config", "tiny.yaml", "name=begun"]) == 130
    return folder


@pytest.fixture(autouse=True)
def folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(project)
    return project


def held_out(run: str | Path) -> tuple[int, float]:
    """Rows and loss in a folder of results."""
    (result,) = json.loads(Path(run, "evaluation/results.json").read_text())["results"]
    return result["rows"], result["figures"]["response_loss"]["value"]


def own_loss(run: str | Path) -> float:
    """The last loss that a fit has measured."""
    manifest = Manifest.read(Path(run))
    assert manifest is not None
    return float(manifest.results["stage2"]["milestones"]["stage2"]["response_loss"])


def test_a_run_is_evaluated_on_its_own_rows_and_in_its_own_store(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--from", "runs/tiny", HELD_OUT]) == 0
    assert "held_out: not the rows" not in capsys.readouterr().out
    rows, loss = held_out("runs/tiny")
    assert rows == 2
    assert loss == pytest.approx(own_loss("runs/tiny"), abs=1e-6)
    manifest = Manifest.read(folder / "runs/tiny")
    assert manifest is not None
    run = MlflowClient(f"sqlite:///{folder}/store.db").get_run(str(manifest.mlflow_run_id))
    assert run.data.metrics["eval/held_out/response_loss"] == loss
    assert not (folder / "mlruns").exists(), "nothing went to the default store"


def test_of_a_model_that_is_no_runs_the_original_is_not_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--from", "tiny-llama", HELD_OUT, "--beside", "original"]) == 2
    assert "--beside original needs a run, or its --config; 'tiny-llama' is of none." in capsys.readouterr().err


def test_the_original_is_measured_beside_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--from", "runs/tiny", HELD_OUT, "--beside", "original"]) == 0
    manifest = Manifest.read(folder / "runs/tiny")
    assert manifest is not None
    original = manifest.results["prepare"]["milestones"]["original"]["response_loss"]
    (line,) = re.findall(r"held_out +response_loss +(\S+) +(\S+) ", capsys.readouterr().out)
    assert [float(figure) for figure in line] == pytest.approx([original, own_loss("runs/tiny")], abs=1e-3)


def test_what_the_command_line_says_wins_and_other_rows_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = [{"instruction": f"Say {n}.", "input": "", "output": "a b c"} for n in range(9)]
    (folder / "other.jsonl").write_text("\n".join(map(json.dumps, other)), encoding="utf-8")
    words = ["data.source=other.jsonl", "evaluation.held_out_rows=3", "data.validation_size=5"]
    assert main(["evaluate", "--from", "runs/tiny", HELD_OUT, *words]) == 0
    rows, loss = held_out("runs/tiny")
    assert rows == 3
    told = capsys.readouterr().out
    assert "held_out: rows of other.jsonl" in told
    assert told.count("data: other.jsonl (alpaca), 9 rows read, 4 train, 5 validation") == 1
    assert "held_out: not the rows that runs/tiny was measured on as it was fitted" in told
    assert loss != pytest.approx(own_loss("runs/tiny"), abs=1e-3)


def test_a_stage_s_folder_and_the_adapter_are_evaluated_on_the_run_s_rows() -> None:
    assert main(["evaluate", "--from", "runs/tiny/stage1", HELD_OUT]) == 0
    rows, loss = held_out("runs/tiny")
    assert (rows, loss) != (2, pytest.approx(own_loss("runs/tiny"), abs=1e-7))
    assert main(["evaluate", "--from", "runs/tiny/adapter", HELD_OUT]) == 0
    assert held_out("runs/tiny") == (2, pytest.approx(own_loss("runs/tiny"), abs=1e-5))


def test_from_another_folder_the_rows_are_found_where_the_run_was_made(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Other", "output": "rows"}\n' * 9, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--from", str(folder / "runs/tiny"), HELD_OUT]) == 0
    assert held_out(folder / "runs/tiny") == (2, pytest.approx(own_loss(folder / "runs/tiny"), abs=1e-6))
    assert not (tmp_path / "mlruns").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_rows_that_are_gone_are_told_where_they_are_needed(
    dry: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "rows.jsonl").rename(folder / "moved.jsonl")
    try:
        assert main(["evaluate", "--from", "runs/tiny", HELD_OUT, *dry]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert (
            "data.source: the rows of this run, 'rows.jsonl' (runs/tiny/manifest.json), are not there any more" in error
        )
        words = ["evaluation.probes=[retrieval]", "evaluation.lengths=[512]", "evaluation.trials=1"]
        assert main(["evaluate", "--from", "runs/tiny", *words, *dry]) == 0
    finally:
        (folder / "moved.jsonl").rename(folder / "rows.jsonl")


def test_export_takes_every_model_folder_of_a_run(folder: Path, tmp_path: Path) -> None:
    assert main(["evaluate", "--from", "runs/tiny", HELD_OUT]) == 0
    weights = {}
    for name in ("", "final", "adapter", "stage1", "initial"):
        target = tmp_path / f"exported-{name}"
        assert main(["export", "--from", str(Path("runs/tiny", name)), "--to", str(target)]) == 0
        weights[name] = (target / "model.safetensors").read_bytes()
        assert (target / "tokenizer.json").is_file()
    card = (tmp_path / "exported-/README.md").read_text()
    assert "\n# tiny\n" in card
    assert "![Held-out loss at each milestone](milestones.png)" in card
    assert (tmp_path / "exported-/milestones.png").read_bytes().startswith(b"\x89PNG")
    assert "| held_out | response_loss | " in card, "it was evaluated"
    assert weights[""] == weights["final"] == weights["adapter"]
    assert len(set(weights.values())) == 3
    assert main(["generate", "--from", "runs/tiny/adapter", "--prompt", "Hi", "--max-new-tokens", "2"]) == 0


def test_the_original_answers_beside_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "Count to 2.", "--max-new-tokens", "6"]
    texts = []
    for name in ("runs/tiny", named_model("tiny-llama")):
        assert main(["generate", "--from", str(name), *words]) == 0
        texts.append(capsys.readouterr().out.removesuffix("\n").strip())
    assert main(["generate", "--from", "runs/tiny", *words, "--beside", "original"]) == 0
    printed = capsys.readouterr().out
    shown = re.search(
        r"prompt: Count to 2\.\noriginal \(([\d.]+) tokens/s, ([\d.]+) KiB of cache for \d+ tokens\): (.*)\n"
        r"converted \(([\d.]+) tokens/s, ([\d.]+) KiB of cache for \d+ tokens\): (.*)\n",
        printed,
        re.DOTALL,
    )
    assert shown is not None, printed
    assert [shown[6], shown[3]] == texts
    assert float(shown[5]) < float(shown[2])


def test_a_fit_s_last_table_has_what_generate_says_to_the_same_rows(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = (folder / "runs/tiny/final_table.txt").read_text()
    words = ["generate", "--from", "runs/tiny", "--row", "1", "--max-new-tokens", "24"]
    assert main([*words, "--beside", "original"]) == 0
    printed = capsys.readouterr().out
    found = re.search(
        r"^prompt: row 1: (Count to \d\.)\noriginal .*\): (.*)\nconverted .*\): (.*)\nexpected: 1 2 3\n$", printed, re.S
    )
    assert found is not None, printed
    asked, original, final = found.groups()
    lines = table[table.index(f"row 1: {asked}") :].splitlines()
    labels = ["original", "after initialisation", "after stage 2", "(expected)"]
    assert [line[2:24].strip() for line in lines[1:5]] == labels
    said = [" ".join(text.split()) for text in (original, final, "1 2 3")]
    assert [line[24:] for line in (lines[1], lines[3], lines[4])] == [line[:55] for line in said]
    assert main(words) == 0
    assert capsys.readouterr().out == f"--- row 1: {asked}\n{final}\n--- expected: 1 2 3\n"
    manifest = Manifest.read(folder / "runs/tiny")
    assert manifest is not None
    run = MlflowClient(f"sqlite:///{folder}/store.db").get_run(str(manifest.mlflow_run_id))
    (logged,) = folder.glob(f"**/{run.info.run_id}/artifacts/held_out_texts.json")
    columns = ["row", "asked", "expected", "original", "initial", "stage2"]
    assert json.loads(logged.read_text())["columns"] == columns
    assert {"path": logged.name, "type": "table"} in json.loads(run.data.tags["mlflow.loggedArtifacts"])


def test_a_row_that_is_not_there_and_rows_of_no_run_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--from", "runs/tiny", "--row", "2"]) == 2
    assert "--row 2: the held-out rows of 'rows.jsonl' are numbered from 0 to 1." in capsys.readouterr().err
    assert main(["generate", "--from", "tiny-llama", "--row", "0"]) == 2
    assert "--row needs a run, or its --config; 'tiny-llama' is the folder of none." in capsys.readouterr().err


def test_names_of_models_are_taken_where_folders_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prompt", "Count to 2.", "--max-new-tokens", "6"]
    for source in ("tiny-llama", str(named_model("tiny-llama"))):
        assert main(["generate", "--from", source, *words]) == 0
    one, other = capsys.readouterr().out.splitlines()
    assert one == other
    assert main(["generate", "--from", "tiny-lama", *words]) == 2
    assert "Did you mean 'tiny-llama'?" in capsys.readouterr().err
    assert main(["generate", "--from", "somebody/something", *words]) == 2
    assert "model 'somebody/something' is not in the local cache" in capsys.readouterr().err


def test_any_model_answers_beside_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--from", "runs/tiny", "--row", "0", "--max-new-tokens", "4", "--beside"]
    texts = []
    for beside in ("original", "tiny-llama"):
        assert main([*words, beside]) == 0
        texts.append(re.sub(r"\([\d.]+ tokens/s", "(", capsys.readouterr().out))
    assert texts[0].replace("\noriginal (", "\ntiny-llama (") == texts[1]


def test_a_copied_adapter_is_merged_into_the_copy_s_base(folder: Path, tmp_path: Path) -> None:
    shutil.copytree("runs/tiny", tmp_path / "copy")
    (folder / "runs/tiny").rename(folder / "runs/gone")
    try:
        assert main(["export", "--from", str(tmp_path / "copy/adapter"), "--to", str(tmp_path / "exported")]) == 0
    finally:
        (folder / "runs/gone").rename(folder / "runs/tiny")
    final = (folder / "runs/tiny/final/model.safetensors").read_bytes()
    assert (tmp_path / "exported/model.safetensors").read_bytes() == final
    shutil.rmtree(tmp_path / "copy/stage1")
    (tmp_path / "copy/manifest.json").unlink()
    assert main(["export", "--from", str(tmp_path / "copy/adapter"), "--to", str(tmp_path / "again")]) == 0, "recorded"


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "runs/begun",
            "is not finished, which writes 'final'; what it has so far is in 'runs/begun/stage1'",
        ),
        ("runs", "it holds runs; give one of them: tiny."),
        ("runs/tiny/tracking", "it is a part of the run 'runs/tiny' and no model; give the run itself."),
        ("runs/begun/checkpoints", "it is a part of the run 'runs/begun' and no model; give the run itself."),
        ("runs/tiny/final/config.json", "is a file; give the folder it is in: 'runs/tiny/final'."),
        ("runs/tiny/manifest.json", "is a file; give the folder it is in: 'runs/tiny'."),
        ("runs/tinny", "Did you mean 'tiny'?"),
        ("runs/tiny/adaptor", "Did you mean 'adapter'?"),
    ],
)
def test_what_is_no_model_says_which_folder_to_give(source: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["export", "--to", "x"], ["generate", "--prompt", "Hi"], ["evaluate", HELD_OUT]):
        assert main([*command, "--from", source]) == 2
        assert told in " ".join(capsys.readouterr().err.replace(f"{Path.cwd()}/", "").split())


def test_a_sweep_s_folder_names_its_points(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = folder / "runs/swept"
    (sweep / "sweep").mkdir(parents=True)
    (sweep / "sweep/manifest.json").write_text('{"points": {}}')
    (sweep / "two").mkdir()
    (sweep / "two/manifest.json").write_text("{}")
    try:
        for finished in (False, True):
            if finished:
                shutil.copytree(folder / "runs/tiny/final", sweep / "two/final")
            told = "give one of its finished points: two." if finished else "none of its points is finished (two)."
            for source in ("runs/swept", "runs/swept/sweep"):
                for command in (["generate", "--prompt", "Hi"], ["evaluate", HELD_OUT]):
                    assert main([*command, "--from", source]) == 2
                    assert f"it is the folder of a sweep; {told}" in capsys.readouterr().err
    finally:
        shutil.rmtree(sweep)
