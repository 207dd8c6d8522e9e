"""Random-number states in the checkpoint, so that a resumed run draws what it would have drawn."""

from __future__ import annotations

import random
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch


class RngState(pl.Callback):
    """Saves the states of Python's, NumPy's and PyTorch's generators and restores them when training restarts.

    Lightning checkpoints none of them; dropout and LoRA would otherwise differ after a resume. The state
    of rank 0 is the one that is saved; generators that must differ by rank are the caller's business.
    """

    def __init__(self) -> None:
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        algorithm, keys, position, has_gauss, gauss = np.random.get_state()
        return {
            "python": random.getstate(),
            # weights_only loading knows tensors and plain values, not NumPy arrays
            "numpy": (str(algorithm), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # as late as possible: building models and loaders draws numbers too
        if self._restored is None:
            return
        state, self._restored = self._restored, None
        algorithm, keys, position, has_gauss, gauss = state["numpy"]
        random.setstate(state["python"])
        np.random.set_state((algorithm, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
        torch.set_rng_state(state["torch"])
        if state["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
