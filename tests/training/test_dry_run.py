"""A dry run that says "all checks passed" is followed by a fit that starts; else it says why, and exits with 2."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from uniattn_pl.cli import main
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint

CONFIG = """\
name: tiny
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
data: {num_samples: 12, validation_size: 4, max_length: 700}
calibration: {initialiser: zero, num_samples: 4, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 1}
evaluation: {num_samples: 2, texts: 0}
"""
ROW = {"instruction": "Count.", "input": "to 3", "output": "1 2 3"}


class Started(BaseException):
    """The first optimizer step was made."""


@dataclass(frozen=True)
class Case:
    """Words of a fit in a folder that `make` has prepared, and what the dry run names; nothing: the fit starts."""

    words: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    make: Callable[[Path], object] = lambda folder: None
    environment: dict[str, str] = field(default_factory=dict)


def rows(folder: Path, number: int, **row: str) -> None:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({**ROW, **row, "input": f"to {n}"}) + "\n" for n in range(number))
    )


def model(folder: Path) -> Path:
    """A model folder of one's own."""
    return Path(shutil.copytree(named_model("tiny-llama"), folder / "model"))


def model_without(name: str) -> Callable[[Path], None]:
    return lambda folder: (model(folder) / name).unlink()


def cut_weights(folder: Path) -> None:
    weights = model(folder) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def busy(folder: Path) -> None:
    (folder / "runs" / "tiny").mkdir(parents=True)
    lock = (folder / "runs" / "tiny" / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    HELD.append(lock)


HELD: list[object] = []
OWN = ("model.source=./model",)
DATA = ("data.source=rows.jsonl",)
LORA = ("training.lora.enabled=true", "training.lora.rank=2", "training.stage1.enabled=false")
CASES = {
    "as it is": Case(),
    "a folder of one's own": Case(OWN, make=model),
    "low-rank updates": Case(LORA),
    "low-rank updates of the MLP": Case((*LORA, "training.lora.target_modules=[up_proj,lm_head]")),
    "best weights by Muon": Case(
        ("training.optimizer=muon", "training.keep=best", "training.eval_every_steps=1", "training.stage1.max_steps=2")
    ),
    "rows of a file": Case(DATA, make=lambda folder: rows(folder, 6)),
    "packed": Case(("data.packing=true", "training.batch_size=1")),
    "a home": Case(("trainer.default_root_dir=~/runs_x", "tracking.uri=sqlite:///~/m.db")),
    "a name of 100 characters": Case((f"name={'n' * 100}",)),
    "an ended server": Case(("tracking.uri=http://127.0.0.1:9",)),
    "layers by measurement": Case(("architecture.selection=similarity",)),
    "the largest seed": Case((f"seed={2**31 - 1}",)),
    "drawn eagerly": Case(("model.attn_implementation=eager",)),
    "another name for a CPU": Case(("trainer.accelerator=cpu", "trainer.devices='1'")),
    "one task of SLURM": Case(environment={"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}),
    # refused
    "no weights": Case(OWN, ("model.safetensors",), model_without("model.safetensors")),
    "cut weights": Case(OWN, ("model.safetensors",), cut_weights),
    "no tokenizer": Case(OWN, ("tokenizer",), model_without("tokenizer.json")),
    "no config": Case(OWN, ("config.json",), model_without("config.json")),
    "no such projection": Case((*LORA, "training.lora.target_modules=[q_prj]"), ("Did you mean 'q_proj'?",)),
    "too many rows to skip": Case(("calibration.skip_samples=8",), ("calibration.skip_samples=8 leaves no row",)),
    "prompts that are too long": Case(("data.max_length=8",), ("has a prompt shorter than data.max_length=8",)),
    "fewer rows than are held out": Case(
        (*DATA, "data.num_samples=null"), ("data.validation_size=4 leaves no row",), lambda folder: rows(folder, 3)
    ),
    "a file in the way": Case(
        (), ("'runs/tiny' cannot be a folder", "is a file"), lambda folder: (folder / "runs").write_text("")
    ),
    "a place without files": Case(("trainer.default_root_dir=/proc/x",), ("nothing can be written to '/proc/x'",)),
    "a name of 300 characters": Case((f"name={'n' * 300}",), ("of at most 200 bytes",)),
    "folders of 300 characters": Case((f"trainer.default_root_dir={'n' * 300}/x",), ("too long",)),
    "a folder as a database": Case(("tracking.uri=sqlite:///.",), ("tracking.uri",)),
    "text as a database": Case(
        ("tracking.uri=sqlite:///m.db",), ("m.db",), lambda folder: (folder / "m.db").write_text("no database")
    ),
    "no such store": Case(("tracking.uri=sqllite:///m.db",), ("Did you mean 'sqlite'?",)),
    "a run that goes on": Case((), ("another fit is running",), busy),
    "too large a seed": Case(("seed=4294967295",), ("seed: must be at most 2147483647",)),
    "no GPU": Case(("trainer.accelerator=mps",), ("trainer.accelerator",)),
    "two tasks of SLURM": Case((), ("SLURM_NTASKS=2",), environment={"SLURM_NTASKS": "2"}),
    "several at once": Case(
        ("trainer.accelerator=mps", "tracking.uri=sqllite:///m.db", "calibration.skip_samples=9"),
        ("trainer.accelerator", "'sqlite'", "skip_samples"),
    ),
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of all fits here that name no other one: making its tables takes longer than a fit."""
    return tmp_path_factory.mktemp("store") / "mlflow.db"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def start(*_: object) -> None:
        raise Started

    monkeypatch.setattr(StepCheckpoint, "on_train_batch_end", start)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(CONFIG + f"tracking: {{uri: 'sqlite:///{database}'}}\n")
    return tmp_path


def entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.match("*.lock")}


@pytest.mark.parametrize("name", CASES)
def test_a_fit_starts_where_all_checks_passed(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    case = CASES[name]
    case.make(folder)
    for variable, value in case.environment.items():
        monkeypatch.setenv(variable, value)
    words = ["fit", "--config", "a.yaml", *case.words]
    before = entries(folder)
    code = main([*words, "--dry-run"])
    printed = capsys.readouterr()
    HELD.clear()
    assert entries(folder) == before, "nothing was made"
    assert code == (2 if case.refused else 0), printed.err
    assert "Traceback" not in printed.err
    for part in case.refused:
        assert part in printed.err
    if not case.refused:
        assert "dry run: all checks passed" in printed.out
        with pytest.raises(Started):
            main(words)


def test_a_begun_fit_is_looked_at(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows(folder, 6)
    words = ["fit", "--config", "a.yaml", *DATA]
    with pytest.raises(Started):
        main(words)
    assert main([*words, "--dry-run"]) == 0
    assert "resumes or extends" in capsys.readouterr().out
    assert main([*words, "training.stage1.learning_rate=1e-3", "--dry-run"]) == 2
    assert "training.stage1.learning_rate" in capsys.readouterr().err
    rows(folder, 6, output="4 5 6")
    assert main([*words, "--dry-run"]) == 2
    assert "the training rows changed" in capsys.readouterr().err
    assert main([*words, "--dry-run", "--allow-changes"]) == 0


def test_a_model_that_is_not_here_is_said_not_to_be_checked(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "--config", "a.yaml", "model.source=llama-2-7b", "architecture.superblock_size=4"]
    code = main([*words, "model.source=meta-llama/Llama-2-7b-hf", "--dry-run"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "not the model's own files: model 'meta-llama/Llama-2-7b-hf' is not in the local cache" in printed.out
    assert "all checks passed" not in printed.out


def test_the_dry_run_of_a_sweep_names_the_points_that_cannot_start(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = "{a: {seed: 1}, b: {trainer.accelerator: mps}, c: {calibration.skip_samples: 8}}"
    words = ["sweep", "--config", "a.yaml", "--dry-run"]
    assert main([*words, f"sweep.points={points}"]) == 2
    printed = capsys.readouterr().err
    assert "point 'b': trainer.accelerator" in printed
    assert "point 'c': calibration.skip_samples=8 leaves no row" in printed
    assert printed.count("error: ") == 2
    assert main([*words, "sweep.seeds=[0, 1]"]) == 0
    assert "all points were checked" in capsys.readouterr().out
