"""What loading a model folder never does: run its code unasked, read pickle files, or read files outside of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uniattn_pl.errors import UserError

ADAPTER_WEIGHTS = "adapter_model.safetensors"


@contextmanager
def refusals_explained(source: str | Path, *, way_out: str) -> Iterator[None]:
    """Say in our words why transformers does not load `source`: it needs code of its own, or has no safetensors.

    Args:
        source: as the user wrote it.
        way_out: what to do about a model with code of its own.

    Raises:
        UserError: instead of transformers' ValueError or OSError about one of these two; others pass.
    """
    try:
        yield
    except ValueError as error:
        if "trust_remote_code=True" not in str(error):
            raise
        raise UserError(f"'{source}' needs Python code that comes with it, which is not run; {way_out}") from error
    except OSError as error:
        if "file named model.safetensors" not in str(error):
            raise
        raise UserError(_no_safetensors(source)) from error


def check_shards(folder: Path) -> None:
    """Check that an index of a folder's weights names safetensors files of this folder only.

    Raises:
        UserError: it names another kind of file, or one elsewhere.
    """
    for index in sorted(folder.glob("*.safetensors.index.json")):
        weight_map = json.loads(index.read_text(encoding="utf-8")).get("weight_map", {})
        for name in sorted(set(map(str, weight_map.values()))):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(f"{index} names '{name}'; weights are read from .safetensors files beside it only.")


def check_adapter(folder: Path) -> None:
    """Raise UserError unless a peft adapter folder has its weights as safetensors."""
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UserError(_no_safetensors(folder, ADAPTER_WEIGHTS))


def _no_safetensors(source: str | Path, name: str = "model.safetensors") -> str:
    return (
        f"'{source}' has no weights in safetensors ({name}); pickled ones (.bin, .pt) can run code as they are read, "
        "so they are not. Where you trust them, load the model with transformers (or peft) and save_pretrained it."
    )
