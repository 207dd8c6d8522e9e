"""Rows of text that the original model writes itself: data for distillation where there are few.

A row is a continuation of a training row's prompt, or of nothing (BOS), drawn token by token from the model's own
distribution. The random numbers of row i depend on the seed and on i alone. Rows are drawn in batches of a fixed size,
each kept as a file of its own in the cache folder the moment it is done: a killed fit goes on behind the last one,
another fit of the same model and prompts finds them, and more rows are the same ones and then others.
"""

from __future__ import annotations

import json
import time
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console

from uniattn_pl.config.sections.data_section import SELF, DataConfig, SelfTextConfig
from uniattn_pl.config.sections.model_section import ModelConfig
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.row_contents import contents_of
from uniattn_pl.data.rows import Row
from uniattn_pl.data.sources import SourceRows
from uniattn_pl.data.text_sampling import TextSampler
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.errors import UserError
from uniattn_pl.files import CACHE_VARIABLE, atomic_file, cache_folder, exclusive_lock
from uniattn_pl.modeling.loading.dtypes import resolve_dtype
from uniattn_pl.modeling.loading.model_contents import model_identity
from uniattn_pl.modeling.loading.pretrained import load_model, load_tokenizer
from uniattn_pl.resilience.identity import digests_of, plain_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1
"""Counts up when the same settings give other rows, so that those of former ones are sampled again."""
FROM_BOS = Row("", "", "")  # the prompt of a row that continues nothing


@dataclass(frozen=True)
class Original:
    """The model whose text is sampled, and where.

    Args:
        config: the `model` section of an experiment.
        device: where it is sampled; None: rows that are not there yet are an error, since to look at an experiment is
            to sample nothing.
    """

    config: ModelConfig
    device: torch.device | None = None


class NotSampledError(UserError):
    """Rows that a fit samples when it starts are not there yet."""


def self_rows(
    options: SelfTextConfig, prompts: Sequence[Row], original: Original, config: DataConfig | None = None
) -> SourceRows:
    """Return `options.rows` rows of the original model's text, from the cache folder as far as they are there.

    Of several processes one samples and the others wait for it.

    Args:
        prompts: rows whose prompts are continued, row i that of number i, from the first again behind the last one;
            none: every row begins with BOS.
        config: of the data, whose template prompts are put into; None: the paper's prompt.

    Raises:
        NotSampledError: see `Original.device`.
        UserError: there is no such model, or the cache folder cannot be written.
    """
    prompts = prompts or [FROM_BOS]
    model = original.config
    tokenizer = load_tokenizer(model.source, revision=model.revision, trust_remote_code=model.trust_remote_code)
    template = None if config is None else ChatTemplate.of(config, tokenizer)
    folder = cache_folder() / SELF / _key(options, prompts, model, tokenizer, template)
    rows: list[dict[str, Any]] = []
    try:
        with exclusive_lock(folder.with_name(folder.name + ".lock")):
            for batch in _batches(options, prompts, original, tokenizer, template, folder):
                rows += batch
    except OSError as error:
        raise UserError(
            f"text sampled from the model is kept in '{folder.parent}', which cannot be used ({error}); name another "
            f"folder in ${CACHE_VARIABLE}."
        ) from error
    return _as_source(rows[: options.rows])


def _key(
    options: SelfTextConfig,
    prompts: Sequence[Row],
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
) -> str:
    """A digest of all that a batch of rows depends on; how many there are to be is not of that."""
    asked = [row.question for row in prompts]
    about: dict[str, Any] = {
        "version": VERSION,
        "model": digests_of(model_identity(tokenizer, model.source, model.revision)),
        "dtype": str(resolve_dtype(model.dtype)),
        "prompts": contents_of(asked, "prompts").digest,
        "options": [options.tokens, options.temperature, options.seed, options.batch_size],
    }
    if template is not None:
        about["template"] = template.contents.digest
    return plain_digest(about).hex()


def _batches(
    options: SelfTextConfig,
    prompts: Sequence[Row],
    original: Original,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
    folder: Path,
) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows batch by batch; the model is loaded at the first one that is missing."""
    size = options.batch_size
    sampler: TextSampler | None = None
    started, tokens, count = time.monotonic(), 0, -(-options.rows // size)
    with ProgressReporter(f"text of {original.config.source}", Console()) as progress:
        for batch in range(count):
            file = folder / f"{batch:06d}.json"
            rows = _kept(file)
            if rows is None:
                if sampler is None:
                    sampler, started = _sampler(options, original, tokenizer, template), time.monotonic()
                numbers = range(batch * size, (batch + 1) * size)
                rows, drawn = sampler.sample([prompts[number % len(prompts)] for number in numbers], numbers)
                with atomic_file(file) as opened:
                    opened.write(json.dumps({"rows": rows, "digest": plain_digest(rows).hex()}).encode())
                tokens += drawn
                rate = tokens / (time.monotonic() - started)
                progress.update(batch + 1, count, f"batches, {rate:,.0f} tokens/s")
            yield rows


def _sampler(
    options: SelfTextConfig,
    original: Original,
    tokenizer: PreTrainedTokenizerBase,
    template: ChatTemplate | None,
) -> TextSampler:
    model = original.config
    if original.device is None:
        raise NotSampledError(f"the text of '{model.source}' (data.source={SELF}) is sampled when the fit starts.")
    loaded = load_model(
        model.source,
        dtype=model.dtype,
        attn_implementation=model.attn_implementation,
        revision=model.revision,
        trust_remote_code=model.trust_remote_code,
        device=original.device,
    )
    return TextSampler(
        loaded,
        tokenizer,
        template,
        tokens=options.tokens,
        temperature=options.temperature,
        seed=options.seed,
    )


def _kept(file: Path) -> list[dict[str, Any]] | None:
    """The rows of a batch, or None where it was not sampled yet or is damaged."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = kept["rows"]
        if kept["digest"] == plain_digest(rows).hex():
            return rows
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):  # no JSON or not UTF-8, of another form
        pass
    warnings.warn(f"the sampled text in '{file}' is damaged and sampled again.", stacklevel=2)
    return None


def _as_source(sampled: Sequence[dict[str, Any]]) -> SourceRows:
    """The rows with text; a text of nothing but white space has nothing to learn and counts as skipped."""
    source = SourceRows(SELF, SELF, read=len(sampled))
    usable = [(number, row) for number, row in enumerate((Row(**row) for row in sampled), 1) if row.answers]
    source.rows = [row for _, row in usable]
    source.numbers = array("q", (number for number, _ in usable))
    source.skipped = len(sampled) - len(usable)
    return source
