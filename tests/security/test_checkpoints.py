"""A resumable checkpoint from somebody else is read as tensors and plain data; code in it does not run."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from tests.tiny_fit import CONFIG, ROWS
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from uniattn_pl.cli import main
from uniattn_pl.resilience.checkpoints import CHECKSUMS, FULL
from uniattn_pl.resilience.shard_reading import load_shards

DIVERGES = ["training.stage1.enabled=false", "training.stage2.learning_rate=1e38", "training.stage2.max_steps=3"]
FIT = ["fit", "--config", "tiny.yaml", *DIVERGES, "training.stage2.max_epochs=4", "training.checkpoint_every_steps=1"]


class Bomb:
    """Pickles to a call that creates the file `executed`."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mknod, ("executed",)


def seal(folder: Path) -> None:
    """Whoever forges a checkpoint forges its checksums."""
    content = (folder / FULL).read_bytes()
    sums = {FULL: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    (folder / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")


def test_a_checkpoint_with_code_is_not_resumed_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(ROWS, encoding="utf-8")
    words = [*FIT, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]  # MLflow keeps a store open by its name
    assert main(words) == 1  # it diverges, and leaves its last good checkpoint
    (folder,) = (tmp_path / "runs" / "tiny" / "checkpoints" / "stage2").glob("step-00000001")
    checkpoint = folder / FULL
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "callbacks": Bomb()}, checkpoint)
    seal(folder)
    capsys.readouterr()
    assert main(words) == 1
    assert "weights_only" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()
    torch.load(checkpoint, weights_only=False)
    assert (tmp_path / "executed").exists()  # so it would have


def test_shards_are_read_without_running_what_is_hidden_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    layer = torch.nn.Linear(3, 3)
    good = {"state_dict": layer.state_dict(), "step": 3}
    dcp.save(good, checkpoint_id="good")
    found = {"state_dict": torch.nn.Linear(3, 3).state_dict(), "step": 0}
    load_shards(found, Path("good"))
    assert torch.equal(found["state_dict"]["weight"], layer.weight)
    assert found["step"] == 3

    dcp.save({**good, "step": Bomb()}, checkpoint_id="value")
    dcp.save(good, checkpoint_id="index")
    Path("index/.metadata").write_bytes(pickle.dumps(Bomb()))
    for folder in ("value", "index"):
        with pytest.raises(CheckpointException, match="UnpicklingError"):
            load_shards({"state_dict": layer.state_dict(), "step": 0}, Path(folder))
        assert not Path("executed").exists()
    pickle.loads(Path("index/.metadata").read_bytes())
    assert Path("executed").exists()  # so it would have
