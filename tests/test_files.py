"""Files and folders that are written whole or not at all, and what an export may replace."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from uniattn_pl.errors import UserError
from uniattn_pl.exporting.export_target import check_target
from uniattn_pl.files import atomic_file, atomic_folder, atomic_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(folder: Path, name: str) -> None:
    with atomic_folder(folder) as temporary:
        (temporary / name).write_text(name)


def fail_to_rename(monkeypatch: pytest.MonkeyPatch, *, put_back: bool) -> None:
    """Let no new folder take its name; without `put_back`, the former one cannot get it back either."""
    rename = os.rename

    def failing(source: Path, target: Path) -> None:
        is_former = str(source).endswith(".old")
        if str(target).endswith("model") and not (is_former and put_back):
            raise OSError("the power went")
        rename(source, target)

    monkeypatch.setattr("uniattn_pl.files.os.rename", failing)


def test_a_folder_replaces_the_former_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for name in ("old", "new"):
        write(tmp_path / "model", name)
    assert names(tmp_path / "model") == ["new"]
    assert names(tmp_path) == ["model"]


def test_a_folder_behind_a_link_is_replaced_where_it_is(tmp_path: Path) -> None:
    write(tmp_path / "disk" / "model", "old")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "model")
    write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk" / "model") == ["new"]
    assert names(tmp_path / "disk") == ["model"]


def test_the_former_folder_is_put_back_when_the_new_one_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", "old")
    fail_to_rename(monkeypatch, put_back=True)
    with pytest.raises(OSError, match="power"):
        write(tmp_path / "model", "new")
    assert names(tmp_path / "model") == ["old"]
    assert names(tmp_path) == ["model"]


def test_the_former_folder_survives_beside_its_place_whatever_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "model", "old")
    fail_to_rename(monkeypatch, put_back=False)
    with pytest.raises(OSError, match="power"):
        write(tmp_path / "model", "new")
    (former,) = tmp_path.iterdir()
    assert former.match(".model-*.old")
    assert names(former) == ["old"]


def test_a_file_in_the_place_of_a_folder_stays(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with pytest.raises(NotADirectoryError):
        write(tmp_path / "model", "new")
    assert (tmp_path / "model").read_text() == "a file"
    assert names(tmp_path) == ["model"]


def test_a_file_that_fails_half_way_leaves_the_former_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail_half_way() -> None:
        with atomic_file(path) as file:
            file.write(b"ne")
            raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        fail_half_way()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["state"]


def test_an_export_may_go_to_a_new_an_empty_or_with_overwrite_a_model_folder(tmp_path: Path) -> None:
    source, model, empty = tmp_path / "run", tmp_path / "model", tmp_path / "empty"
    for folder in (source, model, empty):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    check_target(source, tmp_path / "new" / "deep", overwrite=False)
    check_target(source, empty, overwrite=False)
    check_target(source, model, overwrite=True)
    with pytest.raises(UserError, match=r"not empty, a model exists there.*--overwrite"):
        check_target(source, model, overwrite=False)


def test_an_export_sees_through_links(tmp_path: Path) -> None:
    source, link = tmp_path / "runs" / "final", tmp_path / "link"
    source.mkdir(parents=True)
    link.symlink_to(tmp_path / "runs")
    for target, message in ((link, "contains"), (link / "final", "itself"), (link / "final" / "x", "inside")):
        with pytest.raises(UserError, match=message):
            check_target(source, target, overwrite=True)


def test_a_named_file_takes_its_name_when_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "model.gguf"

    def write(text: str, *, fails: bool) -> None:
        with atomic_path(target) as temporary:
            temporary.write_text(text)
            if fails:
                raise RuntimeError(text)

    with pytest.raises(RuntimeError):
        write("half", fails=True)
    assert list(target.parent.iterdir()) == []
    write("first", fails=False)
    with pytest.raises(RuntimeError):
        write("second", fails=True)
    assert [(path.name, path.read_text()) for path in target.parent.iterdir()] == [("model.gguf", "first")]
