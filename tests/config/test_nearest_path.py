"""A path that is not there is told with the nearest one that is, also where only a folder on the way is misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniattn_pl.cli import main
from uniattn_pl.errors import nearest_path


@pytest.mark.parametrize(
    ("named", "hint"),
    [
        ("runs/quickstart/UniAtn", " Did you mean 'UniAttn'?"),
        ("runs/quickstrat/UniAttn", " Did you mean 'runs/quickstart/UniAttn'?"),
        ("run/quickstart/UniAttn", " Did you mean 'runs/quickstart/UniAttn'?"),
        ("runs/quickstrat/other", " There is no folder 'runs/quickstrat' either. Did you mean 'quickstart'?"),
        ("elsewhere/x", " There is no folder 'elsewhere' either."),
        ("runs/quickstart/zzz", ""),
        ("runs/file/zzz", ""),
    ],
)
def test_the_nearest_path_is_named(named: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs/quickstart/UniAttn").mkdir(parents=True)
    (tmp_path / "runs/file").touch()
    monkeypatch.chdir(tmp_path)
    assert nearest_path(Path(named)) == hint


def test_a_command_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/quickstart/UniAttn").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert main(["generate", "--from", "runs/quickstrat/UniAttn", "--prompt", "a"]) == 2
    assert capsys.readouterr().err.strip() == (
        "error: there is no folder 'runs/quickstrat/UniAttn'. Did you mean 'runs/quickstart/UniAttn'?"
    )


@given(st.lists(st.text("ab./ é", min_size=1, max_size=4), min_size=1, max_size=4))
def test_any_path_has_a_hint_or_none(parts: list[str]) -> None:
    assert isinstance(nearest_path(Path(*parts)), str)
