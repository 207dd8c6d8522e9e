"""Files of a run folder that a kill can never leave half-written: checkpoints and model folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.files import atomic_file, atomic_folder


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, then renames it.

    Lightning stages the whole file in memory and moves it from the system's temporary folder, which is a
    plain copy when that is another file system: a kill in between would leave a truncated checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        with atomic_file(Path(path)) as file:
            torch.save(checkpoint, file)


@contextmanager
def phase_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` once complete; whoever holds the run folder's lock calls it.

    A folder already there is from a phase that was never committed and is replaced; what a kill left of
    earlier attempts, a folder moved aside to be replaced included, is removed: the phase writes its product anew.
    """
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        yield temporary


def save_model(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write an ordinary Hugging Face folder: the model in its own dtype as safetensors, and its tokenizer."""
    with phase_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)


def copy_model(source: Path, target: Path) -> None:
    """Copy a model folder."""
    with phase_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
