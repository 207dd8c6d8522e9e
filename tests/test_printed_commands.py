"""Every command line that the program prints runs as printed, whatever its folders are called; what needs a network is
read by the parser of its program."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub.cli.hf import main as hf
from mlflow.cli import cli as mlflow_cli
from mlflow.tracking import MlflowClient

from uniattn_pl import printed_commands
from uniattn_pl.cli import main
from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.tracking.mlflow_store import check_experiment, connect, find_or_create_run

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
ODD = "it's a folder; & more"
CONFIG = """\
name: odd
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
data: {num_samples: 8, validation_size: 4, max_length: 700}
calibration: {initialiser: zero, num_samples: 2, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 1, stage1: {max_steps: 1}, stage2: {enabled: false}}
evaluation: {num_samples: 2, texts: 0}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose name a shell would take apart, with a finished fit."""
    place = tmp_path_factory.mktemp("printed") / ODD
    place.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "a b.yaml").write_text(CONFIG)
        words = ["trainer.default_root_dir=" + json.dumps(f"runs/{ODD}")]
        assert main(["fit", "--config", "a b.yaml", *words]) == 0
    return place


def words_of(line: str) -> list[str]:
    """The words that a shell makes of a printed line, behind the interpreter's name."""
    words = shlex.split(line)
    assert words[:2] == [printed_commands.python().strip("'"), "-m"] or words[0] in ("hf",), line
    return words


def runs(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a printed command of this program as it stands."""
    _, _, package, *words = words_of(line)
    assert package == "uniattn_pl"
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def printed(text: str, start: str) -> list[str]:
    return [line.removeprefix(start).strip() for line in text.splitlines() if line.startswith(start)]


def test_what_a_fit_prints_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    table = (folder / "runs" / ODD / "final_table.txt").read_text()
    (generate,) = printed(table, "generate")
    (export,) = printed(table, "export")
    (serve,), (vllm,) = printed(table, "serve"), printed(table, "vLLM")
    assert words_of(vllm) == [*words_of(serve), "--engine", "vllm"]
    (shows,) = printed(table, "MLflow")
    assert runs(generate, capsys)
    runs(f"{serve} --dry-run", capsys)
    runs(export, capsys)
    assert (folder / "exported" / ODD / "config.json").is_file()
    reads_mlflow(words_of(shows)[3:])


def test_what_a_report_prints_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    place = "trainer.default_root_dir=" + json.dumps(f"runs/{ODD}")
    columns = "report.columns={TTFT: cost/ttft_s@16, Loss: 'eval/held_out/response_loss'}"
    words = ["--config", "a b.yaml", place, columns, "evaluation.probes=[held_out]", "bench.rounds=1"]
    assert main(["report", *words, "bench.lengths=[16]"]) == 0
    text = capsys.readouterr().out
    commands = re.findall(r": (\S+ -m uniattn_pl .*)", text)
    assert len(commands) == 2, text
    for command in commands:
        runs(command, capsys)
    assert main(["report", *words, "bench.lengths=[16]"]) == 0
    assert "missing" not in capsys.readouterr().out, "they filled what was missing"
    (shows,) = printed(text, "MLflow: ")
    reads_mlflow(words_of(shows)[3:])


def reads_mlflow(words: list[str]) -> None:
    """Have MLflow read a command line without running it."""
    context = mlflow_cli.make_context("mlflow", list(words))
    name, command, rest = mlflow_cli.resolve_command(context, [*context.protected_args, *context.args])
    while hasattr(command, "resolve_command"):
        context = command.make_context(name, rest)
        name, command, rest = command.resolve_command(context, [*context.protected_args, *context.args])
    command.make_context(name, rest)


def test_deleted_runs_and_experiments_are_restored_by_what_is_printed(tmp_path: Path) -> None:
    config = TrackingConfig(uri=f"sqlite:///{tmp_path}/{ODD}/mlflow.db", experiment="mine")
    client: MlflowClient = connect(config)
    run_id, _ = find_or_create_run(client, config, name="a", fit_id="1", run_id=None)
    client.delete_run(run_id)
    with pytest.raises(UserError) as deleted:
        find_or_create_run(client, config, name="a", fit_id="1", run_id=run_id)
    in_a_shell(str(deleted.value).rpartition("with: ")[2])
    assert find_or_create_run(client, config, name="a", fit_id="1", run_id=run_id) == (run_id, True)
    client.delete_experiment(client.get_experiment_by_name("mine").experiment_id)
    with pytest.raises(UserError) as gone:
        check_experiment(config)
    in_a_shell(str(gone.value).rpartition("with: ")[2])
    check_experiment(config)


def in_a_shell(line: str) -> None:
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("revision", [None, "main", "a/branch with spaces"])
def test_the_hubs_program_reads_what_is_printed(
    revision: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(printed_commands.hub_model("org/model", revision))
    assert program == "hf"
    assert words == ["download", "org/model", *([] if revision is None else ["--revision", revision])]
    monkeypatch.setattr(sys, "argv", ["hf", *words, "--help"])
    with pytest.raises(SystemExit) as ended:
        hf()
    assert ended.value.code in (0, None)
    assert "--revision" in capsys.readouterr().out


def test_data_and_packages_are_fetched_by_lines_that_are_whole() -> None:
    words = shlex.split(printed_commands.hub_data("org/data", "train[:10]"))
    ast.parse(words[2])
    assert words[1] == "-c"
    assert 'load_dataset("org/data", split="train[:10]")' in words[2]
    assert shlex.split(printed_commands.install("uniattn-pl[evaluation]"))[1:] == [
        "-m",
        "pip",
        "install",
        "uniattn-pl[evaluation]",
    ]


def test_a_server_is_a_page_and_credentials_are_left_out() -> None:
    assert printed_commands.mlflow_ui("http://u:secret@host:5000") == "http://host:5000"
    assert printed_commands.mlflow_ui("http://host/ml/", "4b27") == "http://host/ml/#/runs/4b27"
    shows = printed_commands.mlflow_ui("postgresql://u:secret@host/db")
    assert "secret" not in shows
    reads_mlflow(words_of(shows)[3:])


BUILT = re.compile(r"-m uniattn_pl|mlflow (?:ui|server|runs|experiments) |hf download|pip install|-m mlflow")


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT / "src")) for path in SOURCES])
def test_no_other_file_writes_a_command_line(path: Path) -> None:
    if path.name == "printed_commands.py":
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = [
        n.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in documented
    ]
    assert [text for text in texts if BUILT.search(text)] == []
