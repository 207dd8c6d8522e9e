"""Model folders of a run that a kill can never leave half-written, and that show when they were damaged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.files import atomic_folder, file_digest


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


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Write an ordinary Hugging Face folder: the model in its own dtype as safetensors, and its tokenizer.

    Args:
        state_dict: the weights, where the model itself has only shards of them.
    """
    given: dict[str, Any] = {} if state_dict is None else {"state_dict": dict(state_dict)}
    with phase_folder(folder) as temporary:
        model.save_pretrained(temporary, **given)
        tokenizer.save_pretrained(temporary)


def copy_model(source: Path, target: Path) -> None:
    """Copy a model folder."""
    with phase_folder(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)


def file_sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a model folder."""
    return {file.name: _digest(file) for file in sorted(folder.iterdir()) if file.is_file()}


def damaged_files(folder: Path, recorded: Mapping[str, Any]) -> list[str]:
    """Names of the files that are not as they were when `file_sums` was recorded; others may have been added."""
    return sorted(name for name, digest in recorded.items() if _digest(folder / name) != digest)


def _digest(file: Path) -> str:
    """SHA-256; empty for what cannot be read."""
    try:
        return file_digest(file)
    except OSError:
        return ""
