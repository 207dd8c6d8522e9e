"""The manifest and the lock of a run folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uniattn_pl.errors import UserError
from uniattn_pl.resilience.manifest import Manifest, exclusive, key_of


def test_a_commit_survives_and_moves_on(tmp_path: Path) -> None:
    manifest = Manifest({"seed": 1}, phase="stage1", mlflow_run_id="abc")
    manifest.commit(tmp_path, {"stage": {"steps": 7}}, step_offset=7)
    read = Manifest.read(tmp_path)
    assert read == manifest
    assert (read.phase, read.step_offset, read.results) == ("stage2", 7, {"stage1": {"stage": {"steps": 7}}})
    assert os.listdir(tmp_path) == ["manifest.json"]  # no temporary file is left


def test_a_write_that_dies_leaves_the_former_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Manifest({"seed": 1}).write(tmp_path)
    before = Manifest.read(tmp_path)

    def die(*_: object) -> None:
        raise OSError("the power went")

    monkeypatch.setattr("uniattn_pl.files.os.replace", die)
    with pytest.raises(OSError, match="power"):
        Manifest({"seed": 2}).write(tmp_path)
    assert Manifest.read(tmp_path) == before


def test_settings_of_sampled_text_count_where_text_is_sampled() -> None:
    former = {"data": {"source": "rows.jsonl"}}  # of a version that had none
    now = {"data": {"source": "rows.jsonl", "further_sources": None, "self_text": {"rows": 1000}}}
    assert Manifest(former).changes(now) == {}
    assert key_of(former) == key_of(now)
    sampled, more = ({"data": {"source": "self", "self_text": {"rows": rows}}} for rows in (5, 6))
    assert Manifest(sampled).changes(more) == {"data.self_text.rows": (5, 6)}
    assert key_of(sampled) != key_of(more)


def test_a_run_with_a_teacher_that_knew_no_weight_of_maps_goes_on_without_one() -> None:
    former, now, other = (
        {"training": {"distillation": {"teacher": "original", "stage1": {"logits": 1.0, **maps}}}}
        for maps in ({}, {"maps": 0.0}, {"maps": 0.1})
    )
    assert Manifest(former).changes(now) == {}
    assert key_of(former) == key_of(now) != key_of(other)
    assert list(Manifest(former).changes(other)) == ["training.distillation.stage1.maps"]


def test_a_run_that_was_begun_with_four_superblocks_by_default_goes_on_with_none_said() -> None:
    former, now, other = ({"architecture": {"name": "uniattn", "num_superblocks": n}} for n in (4, None, 3))
    assert Manifest(former).changes(now) == {}
    assert key_of(former) == key_of(now) != key_of(other)
    assert Manifest(former).changes(other) == {"architecture.num_superblocks": (4, 3)}
    assert key_of({"architecture": {"name": "baseline"}}) == key_of({"architecture": {"name": "baseline"}, "name": "x"})


def test_another_config_is_refused_key_by_key_with_ways_out(tmp_path: Path) -> None:
    config = {"seed": 1, "training": {"stage1": {"learning_rate": 0.1}}, "name": "x"}
    manifest = Manifest(config, results={"prepare": {}})
    with pytest.raises(UserError) as caught:
        manifest.check_same_config({"seed": 2, "training": {"stage1": {"learning_rate": 0.2}}, "name": "x"}, tmp_path)
    seed, rate, ways_out = caught.value.problems
    assert seed.startswith("seed was 1")
    assert seed.endswith("is now 2.")
    assert rate.startswith("training.stage1.learning_rate was 0.1")
    assert "another name=" in ways_out


def test_a_file_that_is_no_manifest_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"what": 1}')
    with pytest.raises(UserError, match=r"manifest\.json is not a manifest"):
        Manifest.read(tmp_path)


def test_a_folder_has_one_fit_at_a_time(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(UserError, match="another fit is running"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        pass
