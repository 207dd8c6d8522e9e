"""Tokens kept on disk: the same rows, tokenizer and length limit are tokenised once, however many fits use them.

Each entry is a folder of one safetensors file and its checksum, named by a fingerprint of all the tokens depend on.
`Dataset.map` would fingerprint a tokenizer by pickling it, truncation state and all, and check nothing it reads back.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch
import transformers
from datasets.fingerprint import Hasher
from safetensors import safe_open
from safetensors.torch import save_file

from uniattn_pl.data import (
    chat_encoding,
    chat_template,
    chats,
    documents,
    encoding,
    prompt_ids,
    prompts,
    row_layout,
    scored_spans,
)
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.encoded_rows import EncodedRows, RowCounts
from uniattn_pl.data.encoded_sources import EncodedSources
from uniattn_pl.data.encoding import encode_rows
from uniattn_pl.data.row_contents import contents_of
from uniattn_pl.data.rows import Row
from uniattn_pl.data.scored_spans import ScoredSpans
from uniattn_pl.families.encoder_decoder import decoder_start
from uniattn_pl.files import atomic_folder, cache_folder, exclusive_lock
from uniattn_pl.modeling.loading.model_contents import tokenizer_parts
from uniattn_pl.resilience.identity import Contents, plain_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENS, _CHECKSUM = "tokens.safetensors", "checksum"
_CHUNK = 2**22
# The modules whose code decides what tokens are; of others a change makes none anew.
_MAKERS = (encoding, documents, row_layout, scored_spans, prompt_ids, prompts, chats, chat_template, chat_encoding)


def encode_cached(
    rows: Sequence[Row],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    with_choices: bool = False,
    template: ChatTemplate | None = None,
    skip_refused: bool = False,
    pack_documents: bool = False,
    contents: Contents | None = None,
) -> EncodedRows:
    """As `encode_rows`, but from the cache folder where these rows have been tokenised before, and into it otherwise.

    Of several processes that want the same rows one tokenises and the others wait for it. A damaged entry is
    tokenised again, with a warning; so is everything where the folder cannot be written. A tokenizer that is
    not one of transformers' own on the `tokenizers` library is never cached: nothing tells what its code does.

    Args:
        rows, tokenizer, max_length, with_choices, template, skip_refused, pack_documents: as of `encode_rows`.
        contents: of the rows, where they are known already.

    Raises:
        UserError, RefusedRow: as `encode_rows`.
    """
    contents = contents_of(rows, "rows") if contents is None else contents
    options: dict[str, Any] = {
        "with_choices": with_choices,
        "template": template,
        "skip_refused": skip_refused,
        "pack_documents": pack_documents,
    }
    about = [max_length, with_choices] + ([] if template is None else [template.contents.digest, skip_refused])
    about += ["documents"] if pack_documents else []
    key = _fingerprint(contents, tokenizer, about)
    if key is None:
        return encode_rows(rows, tokenizer, max_length, **options)
    folder = cache_folder() / "tokens" / key
    encoded: EncodedRows | None = None
    try:
        with exclusive_lock(folder.with_name(folder.name + ".lock")):
            encoded = _load(folder)
            if encoded is None:
                encoded = encode_rows(rows, tokenizer, max_length, **options)
                _store(encoded, folder)
    except OSError as error:
        warnings.warn(f"tokens are not kept: {error}. (data.token_cache=false does without them.)", stacklevel=2)
    return encode_rows(rows, tokenizer, max_length, **options) if encoded is None else encoded


def _fingerprint(contents: Contents, tokenizer: PreTrainedTokenizerBase, options: list[Any]) -> str | None:
    """Return a hash of all that tokens depend on, the same in every process; None for a tokenizer of unknown code."""
    parts = tokenizer_parts(tokenizer)
    if parts is None:
        return None
    about = {
        "tokenizer": {name: digest.hex() for name, digest in parts.items()},
        "rows": contents.digest,
        "options": [*options, decoder_start(tokenizer)],
        "versions": [transformers.__version__, tokenizers.__version__, sys.byteorder],
        "code": [inspect.getsource(module) for module in (*_MAKERS, sys.modules[__name__])],
    }
    return plain_digest(about).hex()


def _store(encoded: EncodedRows, folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed here
        shutil.rmtree(leftover, ignore_errors=True)
    tensors = {
        "tokens": encoded.tokens,
        "lengths": encoded.text_lengths,
        "span_bounds": encoded.spans.bounds,
        "span_counts": encoded.spans.counts,
        "source_rows": encoded.source_rows,
        "num_choices": torch.tensor([len(ids) for ids, _ in encoded.choices], dtype=torch.int64),
        "choice_ids": torch.tensor([token for ids, _ in encoded.choices for token in ids], dtype=torch.int64),
        "answers": torch.tensor([answer for _, answer in encoded.choices], dtype=torch.int64),
    }
    if encoded.sources is not None:
        tensors |= {"source_tokens": encoded.sources.tokens, "source_lengths": encoded.sources.lengths}
    with atomic_folder(folder) as temporary:
        save_file(tensors, temporary / _TOKENS, {name: str(count) for name, count in asdict(encoded.counts).items()})
        (temporary / _CHECKSUM).write_bytes(_checksum(temporary / _TOKENS))


def _load(folder: Path) -> EncodedRows | None:
    """Return the kept tokens, or None where the entry is missing or damaged."""
    if not folder.exists():
        return None
    try:
        if (folder / _CHECKSUM).read_bytes() == _checksum(folder / _TOKENS):
            return _read(folder / _TOKENS)
        problem = "its checksum is another"
    except FileNotFoundError as error:
        problem = f"there is no {Path(error.filename).name}"
    warnings.warn(f"the kept tokens in '{folder}' are damaged ({problem}) and made again.", stacklevel=3)
    return None


def _read(file: Path) -> EncodedRows:
    # The tensors are views of the mapped file, whose pages all ranks and workers of a machine use.
    with safe_open(file, framework="pt") as opened:
        tensors: dict[str, Any] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # not a dict
        counts = {field.name: int(opened.metadata()[field.name]) for field in fields(RowCounts)}
    parts = tensors.pop("choice_ids").split(tensors.pop("num_choices").tolist())
    answers = tensors.pop("answers").tolist()
    if "source_tokens" in tensors:
        tensors["sources"] = EncodedSources(tensors.pop("source_tokens"), tensors.pop("source_lengths"))
    tensors["spans"] = ScoredSpans(tensors.pop("span_bounds"), tensors.pop("span_counts"))
    choices = [(tuple(ids.tolist()), answer) for ids, answer in zip(parts, answers, strict=True)]
    return EncodedRows(**tensors, choices=choices, counts=RowCounts(**counts))


def _checksum(file: Path) -> bytes:
    with file.open("rb") as opened:
        chunks: Any = iter(lambda: opened.read(_CHUNK), b"")
        return str(Hasher.hash_bytes(chunks)).encode()
