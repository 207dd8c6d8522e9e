"""A fit that was refused before it did anything binds its folder to nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from uniattn_pl.cli import main
from uniattn_pl.resilience.manifest import Manifest

CONFIG = """
name: tiny
model: {source: tiny-llama, dtype: float32}
architecture: {name: uniattn, superblock_size: 2, num_superblocks: 1}
data: {source: rows.jsonl, validation_size: 2, max_length: 512}
calibration: {num_samples: 2, held_out_samples: 2}
training: {batch_size: 2, micro_batch_size: 2, stage1: {max_steps: 1}, stage2: {max_steps: 1}}
trainer: {accelerator: cpu, devices: 1}
tracking: {uri: "sqlite:///mlflow.db", artifact_location: artifacts}
"""


def test_the_corrected_command_starts_and_a_begun_fit_keeps_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(CONFIG)
    rows = [{"instruction": f"Count to {n}.", "input": "", "output": "One two."} for n in range(6)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    fit = ["fit", "--config", "tiny.yaml"]
    assert main([*fit, "data.max_length=4096"]) == 2
    assert "4096 tokens are more than the 2048 positions" in capsys.readouterr().err
    assert main([*fit, "--dry-run"]) == 0
    assert main(fit) == 0
    manifest = Manifest.read(tmp_path / "runs" / "tiny")
    assert manifest is not None
    assert manifest.config["data"]["max_length"] == 512
    assert main([*fit, "data.max_length=480"]) == 2
    assert "data.max_length was 512 when runs/tiny was started and is now 480" in capsys.readouterr().err
