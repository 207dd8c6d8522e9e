"""Every command that README, docs/, YAML files, examples and the help show can be run, or is listed with its time."""

from __future__ import annotations

import re
import runpy
import subprocess
from dataclasses import dataclass
from fnmatch import fnmatch
from itertools import product
from pathlib import Path

import pytest
from tests.docs.documented import ROOT, Command, documented

from uniattn_pl.cli import main
from uniattn_pl.commands import COMMANDS

PAGE = ROOT / "docs" / "commands.md"
DOCUMENTED = documented()
EVERY = list({command.words: command for command in DOCUMENTED if command.program == "uniattn_pl"}.values())


def runs_its_own_file(command: Command) -> bool:
    """Whether it is what a file of experiments/ says it is run by, as tests/config/test_shipped_files.py tries."""
    file, _, line = command.place.partition(":")
    if not file.startswith("experiments/") or command.words[1:] != ("--config", file):
        return False
    return (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1].startswith("# Run:")


OURS = [command for command in EVERY if not runs_its_own_file(command)]
TRIED = {"report": "--print-config"}  # others have a dry run
RESULTS = [str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs" / "results").glob("*.md"))]
STARTED = [command for command in DOCUMENTED if not command.starts_nothing]


@dataclass(frozen=True)
class Entry:
    """A row of the table of expected times.

    Attributes:
        whats, subjects: commands, targets or scripts, and the globs of the config files they are for.
        time: as the page says it.
        line: where in the page.
    """

    whats: tuple[str, ...]
    subjects: tuple[str, ...]
    time: str
    line: int

    def covers(self, command: Command) -> bool:
        own = command.name if command.program == "uniattn_pl" else f"{command.program} {command.name}"
        return own in self.whats and any(fnmatch(command.subject, subject) for subject in self.subjects)


def entries() -> list[Entry]:
    text = PAGE.read_text(encoding="utf-8")
    head, _, table = text.partition("\n## Expected times\n")
    first, found = head.count("\n") + 3, []
    for number, line in enumerate(table.splitlines(), start=first):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3:
            subjects = tuple(re.findall(r"`([^`]+)`", cells[1])) or ("-",)
            found.append(Entry(tuple(re.findall(r"`([^`]+)`", cells[0])), subjects, cells[2], number))
    return found


ENTRIES = entries()
TIME = re.compile(r"\d+ (?:s|seconds|minutes|hours)\b")


def test_the_collector_finds_what_a_reader_sees() -> None:
    """So that no change of its patterns lets a kind of place slip away."""
    places = {command.place.partition(":")[0] for command in DOCUMENTED}
    assert {"README.md", "docs/training.md", "docs/results/quality.md", "experiments/quickstart.yaml"} <= places
    assert {"CONTRIBUTING.md", "examples/minimal.py", "examples/own_trainer.py"} <= places
    assert {f"src/uniattn_pl/commands/{name}_command.py" for name in COMMANDS} <= places
    assert {command.name for command in EVERY} == set(COMMANDS)
    assert {"make", "benchmarks", "examples"} <= {command.program for command in DOCUMENTED}
    words = {" ".join(command.words) for command in EVERY}
    assert "fit --config exp.yaml trainer.devices=8 trainer.num_nodes=4 training.batch_size=64" in words, "behind srun"
    assert "sweep --config experiments/smollm2/sweep_size.yaml --only 4x4" in words, "words added by a comment"
    both = "training.stage1.enabled=false training.stage2.enabled=false"
    assert f"fit --config experiments/smollm2/pmc_theorem37.yaml {both}" in words, "code over two lines"


@pytest.mark.parametrize("command", OURS, ids=lambda command: f"{command.place}: {' '.join(command.words)}")
def test_a_command_is_one_that_the_program_takes(
    command: Command, sandbox: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its options and keys exist, its files and points are there, its checks pass; it runs dry unless it is cheap."""
    before = sorted((sandbox / "runs").rglob("*"))
    words = list(command.words)
    if command.name == "report" or not command.starts_nothing:
        words.append(TRIED.get(command.name, "--dry-run"))
    words += ["--port", "0"] if command.name == "serve" else []  # whatever listens here already
    code = main(words)
    printed = capsys.readouterr()
    assert code == 0, f"{command.place}: {command}\n{printed.err}"
    assert printed.out.strip()
    assert sorted((sandbox / "runs").rglob("*")) == before, "nothing was started"


def test_a_report_on_an_empty_store_says_what_would_fill_it(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = "experiments/smollm2/sweep_superblocks.yaml"
    assert main(["report", "--config", file]) == 2
    assert capsys.readouterr().err == (
        "error: there is no MLflow store at tracking.uri 'sqlite:///mlruns/mlflow.db'; this makes it, with its runs: "
        f"python -m uniattn_pl sweep --config {file}\n"
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_the_page_of_commands_shows_every_command_with_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert f"usage: uniattn-pl {name} " in capsys.readouterr().out
    assert f"\n| `{name}` | " in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted({c.name for c in DOCUMENTED if c.program == "make"}))
def test_a_make_target_exists(target: str) -> None:
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    "script", sorted({f"{c.program}/{c.name}" for c in DOCUMENTED if c.program in ("benchmarks", "examples")})
)
def test_a_script_has_help_with_the_options_that_are_documented(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [script, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert ended.value.code in (None, 0)
    printed = capsys.readouterr().out
    for command in DOCUMENTED:
        if f"{command.program}/{command.name}" == script:
            for option in (word for word in command.words if word.startswith("--")):
                assert f"{option} " in printed or f"{option}]" in printed, f"{command.place}: {option}"


@pytest.mark.parametrize("command", STARTED, ids=lambda command: f"{command.place}: {' '.join(command.words)}")
def test_a_command_that_takes_time_is_listed_with_its_time(command: Command) -> None:
    assert any(entry.covers(command) for entry in ENTRIES), (
        f"{command.place}: `{command}` takes time and has no row in docs/commands.md, 'Expected times'; "
        f"give one for `{command.name}` and `{command.subject}`."
    )


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: " ".join((*entry.whats, *entry.subjects)))
def test_an_expected_time_is_of_a_documented_command_and_measured_somewhere(entry: Entry) -> None:
    """Figures are those of the results or of the files that show the command; else it says `not measured`."""
    for what, subject in product(entry.whats, entry.subjects):
        one = Entry((what,), (subject,), entry.time, entry.line)
        assert any(one.covers(command) for command in STARTED), (
            f"docs/commands.md:{entry.line}: no document shows `{what}` with `{subject}` any more."
        )
    own = [command for command in STARTED if entry.covers(command) and not command.place.startswith("docs/commands.md")]
    files = {*RESULTS, *(c.subject for c in own), *(c.place.partition(":")[0] for c in own)}
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in files - {"-", "exp.yaml"}]
    for figure in TIME.findall(entry.time):
        assert any(figure in TIME.findall(text) for text in texts), (
            f"docs/commands.md:{entry.line}: neither docs/results/ nor the file of the command says '{figure}'."
        )
    assert "not measured" in entry.time or re.search(r"\d|until you stop it", entry.time)
