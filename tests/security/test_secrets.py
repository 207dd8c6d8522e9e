"""Real commands with credentials in the environment and in URLs: nothing they print or write holds one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.tiny_fit import CONFIG, ROWS

from uniattn_pl.cli import main
from uniattn_pl.tracking import mlflow_store

ENVIRONMENT = {
    "HF_TOKEN": "hf_environmentSECRET",
    "MLFLOW_TRACKING_USERNAME": "alice",
    "MLFLOW_TRACKING_PASSWORD": "passwordSECRET",
    "MLFLOW_TRACKING_TOKEN": "bearerSECRET",
    "AWS_ACCESS_KEY_ID": "AKIASECRET",
    "AWS_SECRET_ACCESS_KEY": "awsSECRET",
    "AWS_SESSION_TOKEN": "sessionSECRET",
    "WHERE": "https://carol:variableSECRET@tracker.invalid/mlflow?token=parameterSECRET",
}
URL = "https://bob:p@ss/urlSECRET@tracker.invalid/mlflow?api_key=querySECRET"
FIT = ["fit", "--config", "tiny.yaml"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def printed(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, folder: Path) -> Callable[[], str]:
    """What was printed and logged so far, once it is known that neither it nor any file has a secret."""

    def check() -> str:
        captured = capfd.readouterr()
        text = captured.out + captured.err + caplog.text
        files = [path for path in folder.rglob("*") if path.is_file()]
        found = [str(path) for path in files if b"SECRET" in path.read_bytes() or "SECRET" in path.name]
        assert found == []
        assert "SECRET" not in text
        return text

    return check


@pytest.fixture
def local_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local database in place of the server that the URI names, so that what would reach it can be read."""
    from mlflow.tracking import MlflowClient

    def connect(_: object) -> MlflowClient:
        return MlflowClient(f"sqlite:///{folder}/store.db")

    monkeypatch.setattr(mlflow_store, "connect", connect)


@pytest.mark.usefixtures("local_store")
@pytest.mark.parametrize("uri", [URL, "${oc.env:WHERE}"], ids=["written", "from a variable"])
def test_a_fit_keeps_credentials_to_itself(folder: Path, printed: Callable[[], str], uri: str) -> None:
    assert main([*FIT, f"tracking.uri={uri}"]) == 0
    assert "https://tracker.invalid/mlflow/#/runs/" in printed()
    manifest = json.loads((folder / "runs" / "tiny" / "manifest.json").read_text())
    assert manifest["config"]["tracking"]["uri"].startswith("https://***@tracker.invalid")
    assert b"https://***@tracker.invalid" in (folder / "store.db").read_bytes()
    copies = list(folder.rglob("artifacts/config.yaml"))
    assert len(copies) == 2, "MLflow's, and the run folder's until it is delivered"
    assert all("https://***@tracker.invalid" in copy.read_text() for copy in copies)


@pytest.mark.usefixtures("local_store")
def test_a_fit_resumes_after_the_password_has_changed(printed: Callable[[], str]) -> None:
    words = ["training.stage1.enabled=false", "training.stage2.enabled=false"]
    assert main([*FIT, *words, f"tracking.uri={URL}"]) == 0
    assert main([*FIT, *words, f"tracking.uri={URL.replace('url', 'new')}"]) == 0
    assert "finished; nothing was run" in printed()


@pytest.mark.usefixtures("local_store")
def test_a_benchmark_keeps_credentials_to_itself(folder: Path, printed: Callable[[], str]) -> None:
    assert main(["bench", "--config", "tiny.yaml", f"tracking.uri={URL}"]) == 0
    assert "  https://tracker.invalid/mlflow\n" in printed()
    assert "https://***@" in (folder / "runs" / "tiny" / "bench" / "results.json").read_text()


@pytest.mark.parametrize("words", [["--print-config"], ["--dry-run"]], ids=" ".join)
@pytest.mark.parametrize("uri", [URL, "${oc.env:WHERE}"], ids=["written", "from a variable"])
def test_looking_at_a_fit_shows_no_credentials(printed: Callable[[], str], words: list[str], uri: str) -> None:
    assert main([*FIT, *words, f"tracking.uri={uri}"]) == 0
    assert "https://***@tracker.invalid/mlflow" in printed()


def test_plan_shows_no_credentials(printed: Callable[[], str]) -> None:
    assert main(["plan", "--config", "tiny.yaml", f"tracking.uri={URL}"]) == 0
    assert "tiny-llama" in printed()


@pytest.mark.parametrize(
    "word",
    [
        f"data.source={URL}",
        f"data.source={URL}.jsonl",
        f"model.source={URL}",
        f"tracking.url={URL}",
        f"seed={URL}",
        f"training={URL}",
        f"name={ENVIRONMENT['HF_TOKEN']}/x",
    ],
)
def test_an_error_about_a_value_shows_no_credentials(printed: Callable[[], str], word: str) -> None:
    assert main([*FIT, "--dry-run", word]) == 2
    assert "***" in printed()


def test_a_server_that_cannot_be_reached_is_named_without_credentials(printed: Callable[[], str]) -> None:
    words = ["training.stage1.enabled=false", "training.stage2.enabled=false"]
    uri = "http://bob:urlSECRET@127.0.0.1:9/?token=querySECRET"
    assert main([*FIT, *words, f"tracking.uri={uri}"]) == 0
    assert "http://***@127.0.0.1:9" in printed()


def test_a_traceback_shows_no_credentials(printed: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_shape(*_: object, **__: object) -> None:
        raise ConnectionError(f"{URL} refused {ENVIRONMENT['MLFLOW_TRACKING_TOKEN']}")

    monkeypatch.setattr("uniattn_pl.training.experiment.load_shape", load_shape)
    assert main(FIT) == 1
    assert "ConnectionError: https://***@tracker.invalid/mlflow?api_key=*** refused ***" in printed()
