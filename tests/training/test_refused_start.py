"""A fit that was refused before it did anything binds its folder to nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.tiny_fit import BASE, ROWS

from uniattn_pl.cli import main
from uniattn_pl.resilience.manifest import Manifest

CONFIG = f"""{BASE}
training: {{batch_size: 2, micro_batch_size: 2, stage1: {{max_steps: 1}}, stage2: {{max_steps: 1}}}}
tracking: {{uri: "sqlite:///mlflow.db", artifact_location: artifacts}}
"""


FIT = ["fit", "--config", "tiny.yaml"]


def test_the_corrected_command_starts_and_a_begun_fit_keeps_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    Path("rows.jsonl").write_text(ROWS)
    assert main([*FIT, "data.max_length=4096"]) == 2
    assert "4096 tokens are more than the 2048 positions" in capsys.readouterr().err
    assert main([*FIT, "--dry-run"]) == 0
    assert main(FIT) == 0
    manifest = Manifest.read(tmp_path / "runs" / "tiny")
    assert manifest is not None
    assert manifest.config["data"]["max_length"] == 512
    assert main([*FIT, "data.max_length=480"]) == 2
    assert "data.max_length was 512 when runs/tiny was started and is now 480" in capsys.readouterr().err
