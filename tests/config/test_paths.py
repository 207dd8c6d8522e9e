"""`~` and `$VARIABLE` are expanded once, as a config is loaded: what writes a path and what reads it agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from uniattn_pl.cli import main
from uniattn_pl.config import load_config
from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import named_model
from uniattn_pl.files import cache_folder

KEYS = (
    "model.source",
    "data.source",
    "data.validation_source",
    "trainer.default_root_dir",
    "evaluation.data_dir",
    "evaluation.text",
    "tracking.artifact_location",
    "bench.beside",
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home that holds what every key may name, and a working folder elsewhere."""
    folder = tmp_path / "home"
    (folder / "x.json").mkdir(parents=True)
    (folder / "x.yaml").write_text("seed: 1\n")
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("PLACE", str(folder))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def value_of(key: str, written: str) -> str:
    value = load_config([], [f"{key}={[written] if key == 'bench.beside' else written}"]).flatten()[key]
    return value[0] if isinstance(value, list) else value


@pytest.mark.parametrize("written", ["~/x.yaml", "$PLACE/x.yaml", "$HOME/x.yaml", "${oc.env:PLACE}/x.yaml"])
@pytest.mark.parametrize("key", KEYS)
def test_every_path_is_expanded(key: str, written: str, home: Path) -> None:
    if key == "trainer.default_root_dir":
        (home / "x.yaml").unlink()
    assert value_of(key, written) == f"{home}/x.yaml"


@pytest.mark.parametrize("key", ["tracking.uri", "sweep.storage"])
def test_databases_are_expanded_and_passwords_are_not(key: str, home: Path) -> None:
    assert value_of(key, "sqlite:///~/mlflow.db") == f"sqlite:///{home}/mlflow.db"
    assert value_of(key, "sqlite:///$PLACE/mlflow.db?timeout=5") == f"sqlite:///{home}/mlflow.db?timeout=5"
    assert value_of(key, "postgresql://u:$PLACE@host/db") == "postgresql://u:$PLACE@host/db"


def test_what_cannot_be_expanded_is_told() -> None:
    with pytest.raises(UserError) as raised:
        load_config([], ["trainer.default_root_dir=$PLCE/x", "data.source=~nobody-of-this-name/x.json"])
    assert "the environment variable PLCE is not set. Did you mean 'PLACE'?" in str(raised.value)
    assert "no user 'nobody-of-this-name'" in str(raised.value)


def test_a_file_that_has_such_a_name_is_itself(tmp_path: Path) -> None:
    Path("$PLACE.json").write_text(json.dumps([]))
    assert value_of("data.source", "$PLACE.json") == "$PLACE.json"


def test_names_stay_names() -> None:
    config = load_config([], ["model.source=smollm2-135m", "data.source=org/data"]).config
    assert (config.model.source, config.data.source) == ("smollm2-135m", "org/data")


def test_options_of_commands_and_config_files_are_expanded(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config=~/x.yaml", "--print-config"]) == 0
    assert "seed: 1" in capsys.readouterr().out
    shutil.copytree(named_model("tiny-llama"), home / "run")
    (home / "to").mkdir()
    (home / "to" / "mine").write_text("")
    assert main(["export", "--from=~/run", "--to=$PLACE/to"]) == 2
    assert f"'{home}/to' is not empty" in capsys.readouterr().err
    assert main(["generate", "--from=~/run", "--prompt=x", "--dry-run"]) == 0
    assert f"with {home}/run" in capsys.readouterr().out


def test_the_cache_of_a_job_script_with_a_literal_tilde_is_in_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIATTN_PL_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
    monkeypatch.delenv("UNIATTN_PL_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == home / ".cache" / "uniattn_pl"


def test_nothing_named_tilde_is_made(home: Path) -> None:
    words = ["trainer.default_root_dir=~/runs_x", "tracking.uri=sqlite:///~/m.db", "model.source=tiny-llama"]
    Path("a.yaml").write_text("data: {num_samples: 8, validation_size: 4}\n")
    words += ["architecture.superblock_size=2", "architecture.num_superblocks=2"]
    assert main(["fit", "--config", "a.yaml", *words, "--dry-run"]) == 0
    assert [entry.name for entry in Path().iterdir()] == ["a.yaml"]
