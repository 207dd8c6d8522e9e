"""A model and a tokenizer by content: the commit of a hub's model, the files of a folder, what a tokenizer does."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import read_json_object, unreadable
from uniattn_pl.modeling.loading.adapter_folder import base_folder, is_adapter
from uniattn_pl.modeling.loading.model_places import local_place
from uniattn_pl.modeling.loading.pretrained import load_shape
from uniattn_pl.resilience.identity import MODEL, TOKENIZER, Contents, plain_digest
from uniattn_pl.resilience.known_digests import known_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Who wrote a config, and from where, says nothing of the model.
_NOT_OF_THE_MODEL = ("transformers_version", "_name_or_path")
# What a former call left behind; each call sets its own.
_OF_A_CALL = ("truncation", "padding")
_OF_A_FOLDER = (".safetensors", ".json", ".py", ".jinja", ".model", ".txt", ".tiktoken")
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def model_contents(source: str, revision: str | None = None) -> Contents | None:
    """The weights and the config of a model source, and code of its own; None where the hub's commit is not known.

    A hub's model is its commit, which names its files' contents; of anything else the files are read, each once while
    it stays as it is (`known_digest`).

    Raises:
        UserError: there is no such model, or a file of it cannot be read.
    """
    place = local_place(source)
    if place is None:
        commit = cached_commit(source, revision)
        return None if commit is None else Contents.named(f"'{source}'", {"commit": commit.encode()}, commit)
    return folder_contents(place, source) if place.is_dir() else Contents.named(f"'{source}'", _files([place]))


def folder_contents(folder: Path, name: str | None = None) -> Contents:
    """The weights and the config in a model folder or an adapter's, and code of its own."""
    files = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".py", ".gguf")]
    configs = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
    parts = {f"{file.name}, {key}": digest for file in configs for key, digest in _keys(file).items()}
    return Contents.named(f"'{name or folder}'", {**_files(files), **parts})


def measured_contents(folder: Path) -> Contents:
    """All files of a model folder that what it computes may depend on, its tokenizer's and an adapter's base included.

    Raises:
        UserError: a file cannot be read, or the base of an adapter is not there.
    """
    files = [file for file in sorted(folder.iterdir()) if file.suffix in _OF_A_FOLDER and file.is_file()]
    parts = _files(files)
    if is_adapter(folder):
        parts["base"] = measured_contents(base_folder(folder)).digest.encode()
    return Contents.named(f"'{folder}'", parts)


def tokenizer_contents(tokenizer: PreTrainedTokenizerBase, source: str) -> Contents:
    """What a tokenizer does; of one with code of its own, the files it was loaded from."""
    parts = tokenizer_parts(tokenizer)
    if parts is None:
        place = Path(tokenizer.name_or_path)
        files = sorted(place.iterdir()) if place.is_dir() else []
        parts = _files([file for file in files if file.is_file() and file.suffix != ".safetensors"])
    return Contents.named(f"'{source}'", parts)


def model_identity(tokenizer: PreTrainedTokenizerBase, source: str, revision: str | None = None) -> dict[str, Contents]:
    """What an experiment rests on beside its rows: its model, where its contents are known, and its tokenizer.

    Raises:
        UserError: as `model_contents`.
    """
    model = model_contents(source, revision)
    known = {} if model is None else {MODEL: model}
    return {**known, TOKENIZER: tokenizer_contents(tokenizer, source)}


def tokenizer_parts(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes] | None:
    """The parts of a tokenizer and their digests, the same in every process; None where code of its own decides."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not type(tokenizer).__module__.startswith("transformers."):
        return None
    state: dict[str, Any] = {k: v for k, v in json.loads(backend.to_str()).items() if k not in _OF_A_CALL}
    special = {name: getattr(tokenizer, name) for name in _SPECIAL}
    return {k: plain_digest(v) for k, v in {"class": type(tokenizer).__qualname__, **special, **state}.items()}


@cache
def hub_commit(source: str, revision: str | None, trust_remote_code: bool) -> str | None:
    """The commit of a hub's model now: of the hub where it answers, else of the local cache; asked once in a process.

    Raises:
        UserError: as `load_model`.
    """
    load_shape(source, revision=revision, trust_remote_code=trust_remote_code)  # brings the cache up to date
    return cached_commit(source, revision)


def cached_commit(source: str, revision: str | None) -> str | None:
    """The commit at which a hub's model is in the local cache, which follows the hub whenever it is loaded."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(source, "config.json", revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def _files(files: list[Path]) -> dict[str, bytes]:
    digests = {}
    for file in files:
        try:
            digests[file.name] = bytes.fromhex(known_digest(file))
        except OSError as error:
            raise UserError(unreadable(file, error)) from error
    return digests


def _keys(file: Path) -> dict[str, bytes]:
    """The keys of a config, so that a changed one can be named; how the file is written says nothing."""
    config = read_json_object(file)
    return {key: plain_digest(value) for key, value in config.items() if key not in _NOT_OF_THE_MODEL}
