"""`export --push-to-hub`: what is sent, and what is said before and when it cannot be; the hub is stood in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from tests.exporting.test_export import saved
from tests.tiny_models import random_model

from uniattn_pl import cli

WORDS = ["export", "--from", "model", "--push-to-hub"]


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What the hub is asked for, with a model at hand and a token in the environment."""
    calls: list[tuple[str, dict[str, Any]]] = []

    def create(api: HfApi, repository: str, **options: Any) -> str:
        calls.append(("create", {"repository": repository, "token": api.token, **options}))
        return f"https://hub/{repository}"

    def upload(_: HfApi, **options: Any) -> None:
        calls.append(("upload", options))

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    monkeypatch.setattr(HfApi, "upload_file", upload)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.chdir(tmp_path)
    saved(random_model("llama"), tmp_path / "model")
    return calls


@pytest.mark.parametrize(("target", "form"), [("out", "folder"), ("out.gguf", "gguf")])
def test_what_was_written_is_sent_to_a_private_repository(
    sent: list[tuple[str, dict[str, Any]]], target: str, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*WORDS, "me/cheaper", "--to", target, "--format", form]
    assert cli.main([*words, "--dry-run"]) == 0
    assert "and send it to 'me/cheaper' on the hub" in capsys.readouterr().out
    assert sent == []
    assert cli.main(words) == 0
    assert "sent to https://hub/me/cheaper" in capsys.readouterr().out
    (first, made), (second, given) = sent
    assert (first, second) == ("create", "upload")
    assert made == {"repository": "me/cheaper", "token": "hf_secret", "private": True, "exist_ok": True}
    assert given["repo_id"] == "me/cheaper"
    place = given.get("folder_path") or given["path_or_fileobj"]
    assert place == Path(target)
    assert place.exists()


def test_all_that_is_wrong_is_said_before_anything_is_written(
    sent: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert cli.main([*WORDS, "a/b/c", "--to", "out"]) == 2
    error = capsys.readouterr().err
    assert "--push-to-hub 'a/b/c' is no repository" in error
    assert "in the environment as HF_TOKEN" in error
    assert not Path("out").exists()


def test_a_hub_that_does_not_answer_leaves_what_was_written(
    sent: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to the hub\nand more")

    monkeypatch.setattr(HfApi, "create_repo", away)
    assert cli.main([*WORDS, "me/cheaper", "--to", "out"]) == 2
    error = capsys.readouterr().err
    assert "'out' is written, but the hub did not take it for 'me/cheaper': no route to the hub" in error
    assert "hf_secret" not in error
    assert (Path("out") / "config.json").is_file()
