"""From a data configuration to training and validation rows.

One source is split; what else is trained on (further sources, text sampled from the original) is added to its training
rows, so that a fit with it has the held-out rows of one without.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uniattn_pl.config.sections.data_section import BOS, EMBEDDED, SELF, DataConfig
from uniattn_pl.data.embedded import EMBEDDED_TRAIN_ROWS
from uniattn_pl.data.row_contents import contents_of
from uniattn_pl.data.rows import Row
from uniattn_pl.data.self_text import Original, self_rows
from uniattn_pl.data.sources import SourceRows, joined_sources, read_source, record_place
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import Contents


@dataclass
class Split:
    """Training and validation rows, and what reading them left out.

    Args:
        train, validation: rows in the order of the split's shuffle.
        source: of the training rows (and of the validation rows, unless `validation_source` is given); of several
            sources their names and counts together.
        train_numbers, validation_numbers: which record of its source each row was, counted from 1.
        validation_source: of the validation rows, if another one.
    """

    train: list[Row]
    validation: list[Row]
    source: SourceRows
    train_numbers: Sequence[int]
    validation_numbers: Sequence[int]
    validation_source: SourceRows | None = None

    def train_contents(self) -> Contents:
        """What is trained on, by content."""
        return contents_of(self.train, f"'{self.source.source}'", self.train_numbers)

    def validation_contents(self) -> Contents:
        """What is held out, by content."""
        source = self.validation_source or self.source
        return contents_of(self.validation, f"'{source.source}'", self.validation_numbers)

    def place(self, index: int, split: str, *, validation: bool = False) -> str:
        """Return where a training or a validation row was read, as in "rows.jsonl, line 3".

        Args:
            split: of a hub data set.
        """
        source = (self.validation_source or self.source) if validation else self.source
        return record_place(source, (self.validation_numbers if validation else self.train_numbers)[index], split)

    @property
    def overlap(self) -> int:
        """Validation rows whose instruction and input, turns before the last answer, or text train as well."""
        train_prompts = set(map(_asked, self.train))
        return sum(_asked(row) in train_prompts for row in self.validation)


def load_split(config: DataConfig, original: Original | None = None) -> Split:
    """Read the rows and split them.

    Rows are shuffled with `random.Random(shuffle_seed).shuffle`. The first `validation_size` are the validation
    rows and the next ones train, so that the validation rows do not change with `num_samples`, which counts both.
    With a `validation_source`, its first `validation_size` rows (all, if it has fewer) are the validation rows.

    Where `source` is `self`, it is the source of the prompts that is split so, and text sampled for its training rows'
    prompts takes their place. The rows of `further_sources` are shuffled among the training rows.

    Args:
        original: the model whose text is sampled; needed where a source is `self`.

    Raises:
        UserError: a source that cannot be read, or no row left to train on.
        NotSampledError: text that is not sampled yet, and is not to be.
    """
    _check_validation_source(config)
    own = SourceRows(SELF, SELF) if config.split_source is None else _read(config, config.split_source)
    order = _shuffled(own, config.shuffle_seed)
    other = _read(config, config.validation_source) if config.validation_source else None
    if other:
        validation = _shuffled(other, config.shuffle_seed)[: config.validation_size]
        candidates = order
    else:
        validation, candidates = order[: config.validation_size], order[config.validation_size :]
    validation_rows, validation_numbers = _taken(other or own, validation)
    source = own
    if len(config.sources) > 1 or config.source == SELF:
        source = _joined(config, _part(own, candidates), validation_rows, original)
        candidates = _shuffled(source, config.shuffle_seed)
        other = other or (own if config.source == SELF else None)
    available = len(candidates) + len(validation)
    used = _used_rows(config, len(validation), available)
    train = candidates[: used - len(validation)]
    if not train:
        limit = f"data.num_samples={config.num_samples}" if used < available else f"the {available} rows"
        raise UserError(
            f"data.validation_size={config.validation_size} leaves no row to train on out of {limit} of "
            f"'{source.source}'; it must be at most {max(0, used - 1)}."
        )
    train_rows, train_numbers = _taken(source, train)
    return Split(
        train_rows,
        validation_rows,
        _counts_of(source),
        train_numbers,
        validation_numbers,
        _counts_of(other) if other else None,
    )


def _check_validation_source(config: DataConfig) -> None:
    source, other = config.source, config.validation_source
    if other and (other == source or Path(other).expanduser().resolve() == Path(source).expanduser().resolve()):
        raise UserError(
            f"data.validation_source is the same as data.source ('{source}'), so every validation row would be "
            "trained on; leave it null to split validation_size rows off."
        )


def _joined(config: DataConfig, own: SourceRows, held_out: Sequence[Row], original: Original | None) -> SourceRows:
    """The training rows of all sources, one after another.

    Args:
        own: what is left of the source that was split.
        held_out: rows whose prompts are not continued.
    """
    parts = {name: _read_other(config, name) for name in config.further_sources or [] if name != SELF}
    if config.source == EMBEDDED:
        own = _part(own, range(min(len(own.rows), EMBEDDED_TRAIN_ROWS)))
    if SELF in config.sources:  # behind the others, whose problems show before anything is sampled
        if original is None:
            raise UserError(f"data.source={SELF} needs a model, whose text it is.")
        parts[SELF] = self_rows(config.self_text, _prompts(config, own, held_out), original, config)
    return joined_sources([parts.get(name, own) for name in config.sources])


def _prompts(config: DataConfig, own: SourceRows, held_out: Sequence[Row]) -> list[Row]:
    """Rows whose prompts the model continues; none: it begins with BOS."""
    asked = config.self_text.prompts
    if asked == BOS:
        return []
    if asked == config.source or config.source == SELF:
        rows = own.rows
    else:
        other = _read_other(config, asked)
        rows = _taken(other, _shuffled(other, config.shuffle_seed))[0]
    never = set(map(_asked, held_out))
    prompts = [row for row in rows if not row.plain and _asked(row) not in never]
    if not prompts:
        raise UserError(
            f"data.self_text.prompts: '{asked}' has no row with a prompt that is not held out; {BOS} begins with none."
        )
    return prompts


def _asked(row: Row) -> tuple[str, ...]:
    asked = row.question
    return (row.output,) if row.plain else (asked.instruction, asked.input, asked.chat)


def _part(source: SourceRows, order: Sequence[int]) -> SourceRows:
    """The source with these rows only."""
    rows, numbers = _taken(source, order)
    return replace(source, rows=rows, numbers=numbers)


def _read(config: DataConfig, source: str) -> SourceRows:
    more = (config.more_files or []) if source == config.source else []
    return _read_other(config, source, more_files=more, format=config.format)


def _read_other(config: DataConfig, source: str, **options: Any) -> SourceRows:
    """The rows of a source whose format is seen from its keys."""
    return read_source(
        source,
        split=config.split,
        on_bad_row=config.on_bad_row,
        whole_chats=config.whole_chats,
        roles=config.role_of,
        **options,
    )


def _shuffled(source: SourceRows, seed: int) -> list[int]:
    """Indices of the rows; which of them come first depends on how many there are, not on what they say."""
    order = list(range(len(source.rows)))
    random.Random(seed).shuffle(order)
    return order


def _taken(source: SourceRows, order: Sequence[int]) -> tuple[list[Row], array[int]]:
    """The rows at these indices, and their numbers in the source."""
    return [source.rows[index] for index in order], array("q", (source.numbers[index] for index in order))


def _counts_of(source: SourceRows) -> SourceRows:
    """A source whose rows now live in a split."""
    return replace(source, rows=[], numbers=array("q"))


def _used_rows(config: DataConfig, validation: int, available: int) -> int:
    """Return how many rows are used, training and validation together."""
    embedded = config.sources == [EMBEDDED]
    if config.num_samples is None:
        return min(available, EMBEDDED_TRAIN_ROWS + validation) if embedded else available
    if embedded and config.num_samples > available:
        raise UserError(
            f"data.num_samples={config.num_samples} is more than the embedded data set has; at most {available}."
        )
    return min(config.num_samples, available)
