"""Model folders of a run that a kill can never leave half-written, and that show when they were damaged."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uniattn_pl.files import atomic_folder, file_digest
from uniattn_pl.resilience.known_digests import known_digest
from uniattn_pl.run_folder import FINAL, MODEL_FILES


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
    # under the names that weights have in the model, by which shards of it are filled again
    given: dict[str, Any] = {"save_original_format": False}
    given |= {} if state_dict is None else {"state_dict": dict(state_dict)}
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


def damaged_files(folder: Path, recorded: Mapping[str, Any], *, read: bool = True) -> list[str]:
    """Names of the files that are not as they were when `file_sums` was recorded; others may have been added.

    Args:
        read: every byte, as before something is built on them; otherwise only files that were written to since they
            were read last (`known_digest`).
    """
    digest = file_digest if read else known_digest
    return sorted(name for name, wanted in recorded.items() if _digest(folder / name, digest) != wanted)


def lost_files(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of the files of a finished run's final model that are gone, or are not as the run has left them.

    Args:
        folder: of the run.
        results: of its phases, as its manifest has them.
    """
    # a stage that does not run copies the folder of the phase before it
    written = (results.get(phase, {}).get("files") for phase in ("stage2", "stage1", "initialise"))
    recorded = next((files for files in written if files), None)
    if recorded is not None:
        return damaged_files(folder / FINAL, recorded, read=False)
    return [] if (folder / FINAL / MODEL_FILES[0]).is_file() else [MODEL_FILES[0]]


def _digest(file: Path, digest: Callable[[Path], str] = file_digest) -> str:
    """SHA-256; empty for what cannot be read."""
    try:
        return digest(file)
    except OSError:
        return ""
