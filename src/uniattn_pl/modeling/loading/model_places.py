"""Where a model source lies: a name, a local folder, a GGUF file, a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError
from uniattn_pl.families.catalogue import MODELS, named_model, no_such_model
from uniattn_pl.modeling.loading.gguf_files import converted_gguf
from uniattn_pl.modeling.loading.hub_connection import is_hub_id, only_cached
from uniattn_pl.modeling.loading.safe_folders import refusals_explained

READ = ("*.json", "*.safetensors", "*.model", "*.jinja", "*.txt")  # of a hub's model: config, weights, tokenizer


def located(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """What to hand to `from_pretrained`, and with which options. Raises UserError where there is nothing to read."""
    place = local_place(source)
    if place is None:
        return source, {"revision": revision, "local_files_only": only_cached(source, revision)}
    if not place.is_dir():
        return str(converted_gguf(place)), {"local_files_only": True}
    if not (place / "config.json").exists():
        raise UserError(f"model folder '{source}' has no config.json, so it is not a transformers model.")
    return str(place), {"local_files_only": True}


def hub_folder(source: str, revision: str | None = None) -> Path:
    """The folder of a hub's model in the local cache, fetched where it is not there and the hub can be reached.

    Raises:
        UserError: it is neither there nor to be had, or the hub does not know or give it.
    """
    from huggingface_hub import snapshot_download

    if not is_hub_id(source):
        raise UserError(no_such_model(source))
    cached = only_cached(source, revision)
    with refusals_explained(source, way_out=""):
        folder: str = snapshot_download(source, revision=revision, local_files_only=cached, allow_patterns=list(READ))
    return Path(folder)


def local_place(source: str) -> Path | None:
    """The folder or GGUF file of a model source, a named one made where it is not there yet; None: a hub id.

    Raises:
        UserError: there is no such model here, and a hub id does not look like this.
    """
    if source in MODELS:
        return named_model(source)
    path = Path(source).expanduser()
    if path.suffix == ".gguf" or path.is_dir():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") != 1 or not is_hub_id(source):
        raise UserError(no_such_model(source))
    return None
