"""Presets are found by name from anywhere, as a config and as an include; dictionaries say what files do."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from uniattn_pl.cli import main
from uniattn_pl.config import load_config, presets
from uniattn_pl.errors import UserError

ROOT = Path(__file__).parents[2]


def test_a_preset_is_a_config_and_an_include_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("include: [uniattn_pl://training/small, uniattn_pl://data/embedded]\nseed: 3")
    mine = load_config(["mine.yaml"])
    small = load_config([ROOT / "configs/training/small.yaml"])
    assert (mine.config.training, mine.config.seed) == (small.config.training, 3)
    quickstart = load_config([ROOT / "experiments/quickstart.yaml"])
    for name in ("quickstart", "uniattn_pl://quickstart"):
        assert load_config([name]) == quickstart
    assert main(["fit", "--config", "quickstart", "--print-config"]) == 0
    (tmp_path / "quickstart").write_text("name: a-file-of-that-name")
    assert load_config(["quickstart"]).config.name == "a-file-of-that-name"


def test_the_wheel_takes_along_what_presets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    for source, target in wheel["wheel"]["force-include"].items():
        place = tmp_path / target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(ROOT / source)
    here = presets.presets()
    assert {"quickstart", "training/small", "model/smollm2-135m"} < set(here)
    monkeypatch.setattr(presets, "_PACKAGE", tmp_path / "uniattn_pl")
    installed = presets.presets()
    assert {name: file.resolve() for name, file in installed.items()} == here
    assert all(file.is_relative_to(tmp_path) for file in installed.values())
    assert load_config(["quickstart"]).config == load_config([ROOT / "experiments/quickstart.yaml"]).config


def test_a_preset_that_there_is_not_is_named_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("name: x\ninclude: uniattn_pl://training/smal")
    with pytest.raises(UserError, match=r"mine\.yaml:2: include: there is no preset.*Did you mean 'training/small'\?"):
        load_config([file])
    with pytest.raises(UserError, match=r"there is no preset 'quick'.*Presets: quickstart, "):
        load_config(["uniattn_pl://quick"])
    with pytest.raises(UserError, match=r"--config 'quikstart' does not exist.*Did you mean 'quickstart'\?"):
        load_config(["quikstart"])


def test_a_dictionary_says_what_a_file_does(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("name: a\ntraining: {batch_size: 8, stage1: {max_steps: 3}}\narchitecture: {name: cla}\nseed: 4")
    values = {"name": "a", "training": {"batch_size": 8}, "training.stage1.max_steps": 3}
    loaded = load_config([values, {"architecture": "cla", "seed": 4, "model.source": Path("tiny-llama")}])
    assert loaded.config.model.source == "tiny-llama"
    loaded.config.model.source = load_config([file]).config.model.source
    assert (loaded.config, loaded.architecture) == (load_config([file]).config, load_config([file]).architecture)
    assert loaded.provenance["seed"] == "argument"
    assert load_config([{"include": ["uniattn_pl://training/small"]}]).config.training.batch_size == 16
    with pytest.raises(UserError) as refusal:
        load_config([{"training": {"batch_sise": 8}, "seed": "x", "data": {"source": object()}}])
    assert refusal.value.problems[0].startswith("argument: not what a YAML file can hold")
    with pytest.raises(UserError) as refusal:
        load_config([{"training": {"batch_sise": 8}, "seed": "x"}])
    assert refusal.value.problems == [
        "argument: unknown key 'training.batch_sise'. Did you mean 'training.batch_size'?",
        "argument: seed: expected a whole number, got 'x'.",
    ]
