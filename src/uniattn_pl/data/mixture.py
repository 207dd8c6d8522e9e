"""The rows of a mixture (`data.sources`): every source is read and split by itself, in the order of the entries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from uniattn_pl.config.sections.data_section import EMBEDDED, SELF, DataConfig, SourceConfig
from uniattn_pl.data.configured_sources import read_configured, read_own
from uniattn_pl.data.continued_prompts import continued_prompts
from uniattn_pl.data.documents import check_documents
from uniattn_pl.data.embedded import EMBEDDED_TRAIN_ROWS
from uniattn_pl.data.rows import Row
from uniattn_pl.data.self_text import Original, self_rows
from uniattn_pl.data.sources import SourceRows, joined_sources
from uniattn_pl.data.split_rows import Part, Split, counts_of, shuffled, taken, without_held_out
from uniattn_pl.errors import UserError


def load_mixture(config: DataConfig, original: Original | None = None) -> Split:
    """Read and split the sources of a mixture.

    Each source is shuffled with `data.shuffle_seed`. Without a `validation_source` the first rows of each are held out:
    `validation_size` in equal parts, the first sources one more where it does not divide; text of the model has none.
    So they change neither with weights nor with `num_samples`, the training rows that are taken of a source.

    Args:
        original: the model whose text is sampled; needed where a source is `self`.

    Raises:
        UserError: a source that cannot be read, or of which no row is left to train on.
        NotSampledError: text that is not sampled yet, and is not to be.
    """
    entries = config.sources or []
    _check_validation_source(config, entries)
    sources = [None if entry.source == SELF else _read(config, entry) for entry in entries]
    other = None if config.validation_source is None else _validation_source(config, config.validation_source)
    sizes = [0] * len(entries) if other else equal_shares(config.validation_size, [bool(one) for one in sources])
    orders = [shuffled(one, config.shuffle_seed) if one else [] for one in sources]
    held_out = [
        _part(config, one or SourceRows(SELF, SELF), order[:size])
        for one, order, size in zip(sources, orders, sizes, strict=True)
    ]
    chosen = _Chosen(config, [row for one in ([other] if other else held_out) for row in one.rows], original)
    # text of the model last: the problems of all others show before anything is sampled
    for number, (entry, one) in sorted(enumerate(zip(entries, sources, strict=True)), key=lambda item: not item[1][1]):
        chosen.add(number, entry, one or chosen.sampled(), orders[number][sizes[number] :] if one else None)
    trained = [chosen.parts[number] for number in range(len(entries))]
    train = joined_sources(trained)
    check_documents(config.pack_documents, train.rows, train.source)
    # numbered as the training rows are, behind the records of the sources before
    counted = [replace(one, read=part.read) for one, part in zip(held_out, trained, strict=True)]
    validation = joined_sources([other] if other else counted)
    return Split(
        train.rows,
        validation.rows,
        counts_of(train),
        train.numbers,
        validation.numbers,
        counts_of(other) if other else None,
        tuple(
            Part(counts_of(part), entry.weight, len(part.rows), 0 if other else len(own.rows), entry.split)
            for entry, part, own in zip(entries, trained, held_out, strict=True)
        ),
        chosen.removed,
    )


class _Chosen:
    """The training rows of each entry.

    Args:
        held_out: what is not trained on.
        original: whose text is sampled.
    """

    def __init__(self, config: DataConfig, held_out: Sequence[Row], original: Original | None) -> None:
        self.config, self.held_out, self.original = config, held_out, original
        self.parts: dict[int, SourceRows] = {}
        self.removed = 0

    def add(self, number: int, entry: SourceConfig, source: SourceRows, order: Sequence[int] | None) -> None:
        """Take the rows of an entry: so many of those that are not held out; `order` None: all.

        Raises:
            UserError: none is left.
        """
        order = range(len(source.rows)) if order is None else order
        most = EMBEDDED_TRAIN_ROWS if entry.source == EMBEDDED and entry.num_samples is None else entry.num_samples
        used = list(order[:most])
        if self.config.remove_overlap:
            kept = without_held_out(source, used, self.held_out)
            self.removed += len(used) - len(kept)
            used = kept
        if not used:
            raise UserError(
                f"data.sources: entry {number + 1}: no row of '{entry.source}' is left to train on: it has "
                f"{len(source.rows)}, of which {len(source.rows) - len(order)} are held out "
                f"(data.validation_size={self.config.validation_size} in equal parts); a data.validation_source holds "
                "none of them out."
            )
        self.parts[number] = _part(self.config, source, used)

    def sampled(self) -> SourceRows:
        """Text of the model. Raises as `self_rows`."""
        if self.original is None:
            raise UserError(f"data.sources: '{SELF}' needs a model, whose text it is.")
        known = {part.source: part.rows for part in self.parts.values()}
        return self_rows(
            self.config.self_text, continued_prompts(self.config, known, self.held_out), self.original, self.config
        )


def equal_shares(total: int, takes_part: Sequence[bool]) -> list[int]:
    """Divide a number among those that take part; the first ones get one more where it does not divide."""
    parts, rest = divmod(total, max(1, sum(takes_part)))
    return [parts + (sum(takes_part[:number]) < rest) if takes else 0 for number, takes in enumerate(takes_part)]


def _part(config: DataConfig, source: SourceRows, order: Sequence[int]) -> SourceRows:
    rows, numbers = taken(source, order, documents=config.pack_documents)
    return replace(source, rows=rows, numbers=numbers)


def _read(config: DataConfig, entry: SourceConfig) -> SourceRows:
    options = {"split": entry.split, "format": entry.format, "text_column": entry.text_column}
    return read_configured(config, entry.source, **options)


def _validation_source(config: DataConfig, source: str) -> SourceRows:
    read = read_own(config, source)
    return _part(config, read, shuffled(read, config.shuffle_seed)[: config.validation_size])


def _check_validation_source(config: DataConfig, entries: Sequence[SourceConfig]) -> None:
    if config.validation_source is None:
        return
    here = Path(config.validation_source).expanduser().resolve()
    for number, entry in enumerate(entries, 1):
        if Path(entry.source).expanduser().resolve() == here and (here.exists() or entry.split == config.split):
            raise UserError(
                f"data.validation_source is entry {number} of data.sources ('{entry.source}'), so every validation row "
                "would be trained on; leave it null to hold rows of every source out."
            )
