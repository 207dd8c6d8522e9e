"""Training and validation rows beside each other, and the rows of a source in another order."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate

from uniattn_pl.data.documents import in_document_order, whole_documents
from uniattn_pl.data.overlap import asked_digest, asked_digests
from uniattn_pl.data.row_contents import contents_of, contents_of_parts
from uniattn_pl.data.rows import Row
from uniattn_pl.data.sources import SourceRows, record_place
from uniattn_pl.resilience.identity import Contents


@dataclass(frozen=True)
class Part:
    """What a split has of one source of a mixture.

    Attributes:
        source: its counts.
        weight: its share of the sequences of an epoch, beside the others' weights; None: all rows, once.
        train_rows, validation_rows: how many of the split are its own; those of all parts are one after another.
        split: of a hub data set.
    """

    source: SourceRows
    weight: float | None
    train_rows: int
    validation_rows: int
    split: str


@dataclass
class Split:
    """Training and validation rows, and what reading them left out.

    Args:
        train, validation: rows in the order of the split's shuffle.
        source: of the training rows (and of the validation rows, unless `validation_source` is given); of several
            sources their names and counts together.
        train_numbers, validation_numbers: which record of its source each row was, counted from 1.
        validation_source: of the validation rows, if another one.
        parts: of a mixture, in the order of `data.sources`.
        removed: training rows left out since they are held out, too (`data.remove_overlap`).
    """

    train: list[Row]
    validation: list[Row]
    source: SourceRows
    train_numbers: Sequence[int]
    validation_numbers: Sequence[int]
    validation_source: SourceRows | None = None
    parts: tuple[Part, ...] = ()
    removed: int = field(default=0)

    @property
    def held_out_parts(self) -> tuple[int, ...]:
        """How many of the validation rows are of each source; of a source of their own, all."""
        sizes = tuple(part.validation_rows for part in self.parts)
        return sizes if sum(sizes) == len(self.validation) else (len(self.validation),)

    def train_contents(self) -> Contents:
        """What is trained on, by content."""
        place = f"'{self.source.source}'"
        if self.parts:
            return contents_of_parts(
                cut(self.train, [part.train_rows for part in self.parts]), place, self.train_numbers
            )
        return contents_of(self.train, place, self.train_numbers)

    def by_source(self) -> list[tuple[str, Sequence[Row]]]:
        """The training rows of each source of a mixture, by name."""
        rows = cut(self.train, [part.train_rows for part in self.parts])
        return [(part.source.source, one) for part, one in zip(self.parts, rows, strict=True)]

    def first_rows(self) -> Iterator[Row]:
        """Yield the training rows."""
        return iter(self.train)

    def counted(self) -> str:
        """How many rows there are, in words."""
        return f"{len(self.train)} rows to train on, {len(self.validation)} to validate"

    def validation_contents(self) -> Contents:
        """What is held out, by content."""
        source = self.validation_source or self.source
        return contents_of(self.validation, f"'{source.source}'", self.validation_numbers)

    def place(self, index: int, split: str, *, validation: bool = False) -> str:
        """Return where a training or a validation row was read, as in "rows.jsonl, line 3".

        Args:
            split: of a hub data set.
        """
        number = (self.validation_numbers if validation else self.train_numbers)[index]
        source = (self.validation_source or self.source) if validation else self.source
        if source is not self.validation_source:
            for part in self.parts:
                if number <= part.source.read:
                    return record_place(part.source, number, part.split)
                number -= part.source.read
        return record_place(source, number, split)

    @property
    def overlap(self) -> int:
        """Validation rows that ask what a training row asks (`data/overlap.py`)."""
        return self._overlap[0]

    @property
    def overlap_train(self) -> int:
        """Training rows that ask what a validation row asks."""
        return self._overlap[1]

    @cached_property
    def _overlap(self) -> tuple[int, int]:
        held_out = asked_digests(self.validation)
        trained = [digest for digest in map(asked_digest, self.train) if digest in held_out]
        both = frozenset(trained)
        return sum(asked_digest(row) in both for row in self.validation), len(trained)


def cut(rows: Sequence[Row], sizes: Sequence[int]) -> list[Sequence[Row]]:
    """Rows of several sources, one after another, source by source."""
    return [rows[end - size : end] for size, end in zip(sizes, accumulate(sizes), strict=True)]


def taken(source: SourceRows, order: Sequence[int], *, documents: bool = False) -> tuple[list[Row], array[int]]:
    """The rows at these indices, and their numbers in the source.

    Args:
        documents: bring the pieces of a text that was cut into rows back together.
    """
    if documents:
        order = in_document_order(source.rows, source.numbers, order)
    rows, numbers = [source.rows[index] for index in order], array("q", (source.numbers[index] for index in order))
    return whole_documents(rows, numbers) if documents else rows, numbers


def part_of(source: SourceRows, order: Sequence[int]) -> SourceRows:
    """The source with these rows only."""
    rows, numbers = taken(source, order)
    return replace(source, rows=rows, numbers=numbers)


def counts_of(source: SourceRows) -> SourceRows:
    """A source whose rows now live in a split."""
    return replace(source, rows=[], numbers=array("q"))


def shuffled(source: SourceRows, seed: int) -> list[int]:
    """Indices of the rows; which of them come first depends on how many there are, not on what they say."""
    order = list(range(len(source.rows)))
    random.Random(seed).shuffle(order)
    return order


def without_held_out(source: SourceRows, order: Sequence[int], held_out: Sequence[Row]) -> list[int]:
    """The indices of `order` whose rows ask nothing that a held-out row asks."""
    never = asked_digests(held_out)
    return [index for index in order if asked_digest(source.rows[index]) not in never]
