"""A resumable checkpoint from somebody else is read as tensors and plain data; code in it does not run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.security.tiny_fit import CONFIG, ROWS

from uniattn_pl.cli import main

DIVERGES = ["training.stage1.enabled=false", "training.stage2.learning_rate=1e38", "training.stage2.max_steps=3"]
FIT = ["fit", "--config", "tiny.yaml", *DIVERGES, "training.stage2.max_epochs=4", "training.checkpoint_every_steps=1"]


class Bomb:
    """Pickles to a call that creates the file `executed`."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, ("executed",)


def test_a_checkpoint_with_code_is_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    words = [*FIT, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]  # MLflow keeps a store open by its name
    assert main(words) == 1  # it diverges, and leaves its last good checkpoint
    checkpoint = tmp_path / "runs" / "tiny" / "checkpoints" / "stage2.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": Bomb()}, checkpoint)
    capsys.readouterr()
    assert main(words) == 1
    assert "weights_only" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    torch.load(checkpoint, weights_only=False)
    assert (tmp_path / "executed").exists()  # so it would have
