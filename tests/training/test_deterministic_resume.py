"""A stage that ends in the middle and goes on from its checkpoint is, bit for bit, one that never ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from tests.trainers import fit
from tests.training.test_module import batches, converted

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.resilience.checkpoints import CheckpointStore
from uniattn_pl.training.callbacks.rng_state import RngState
from uniattn_pl.training.callbacks.step_checkpoint import StepCheckpoint
from uniattn_pl.training.lightning_module import PostTrainingModule

OPTIONS = StageConfig(learning_rate=0.01)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """A deterministic Trainer sets what holds for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_resumed_stage_has_the_weights_of_one_that_never_stopped(
    stage: int, precision: str, device: str, tmp_path: Path
) -> None:
    data, store = batches(6), CheckpointStore(tmp_path / "checkpoints")
    start = {name: tensor.clone() for name, tensor in converted().state_dict().items()}

    def trained(
        rows: list[Any], callbacks: list[pl.Callback], ckpt_path: Path | None = None
    ) -> dict[str, torch.Tensor]:
        module = PostTrainingModule(converted(), stage=stage, options=OPTIONS)
        saving = any(isinstance(callback, StepCheckpoint) for callback in callbacks)
        settings = {"deterministic": True, "precision": precision, "enable_checkpointing": saving}
        fit(module, rows, tmp_path, steps=6, ckpt_path=ckpt_path, device=device, callbacks=callbacks, **settings)
        return {name: tensor.cpu() for name, tensor in module.hosted.state_dict().items()}

    whole = trained(data, [RngState(), StepCheckpoint(store, 4)])
    checkpoint = store.newest_good()
    assert checkpoint is not None
    # a plain loader begins anew: first what the checkpoint has not seen
    resumed = trained(data[4:] + data[:4], [RngState()], checkpoint)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
    assert any(not torch.equal(whole[name], tensor) for name, tensor in start.items()), "something was trained"
