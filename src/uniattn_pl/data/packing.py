"""Several rows in one training sequence; none sees another, because positions start again at 0 for each of them."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from uniattn_pl.data.collation import IGNORED, Batch
from uniattn_pl.data.encoded_rows import EncodedRows, Example

MEGA_BATCH = 2048  # rows packed together; of more, sequences would hold rows of fewer lengths


@dataclass(frozen=True)
class Pack:
    """Rows that lie behind each other in one sequence."""

    examples: tuple[Example, ...]

    def blank(self) -> Pack:
        """The same tokens without anything to learn."""
        return Pack(tuple(example.blank() for example in self.examples))


class PackedRows:
    """Encoded rows, packed once into sequences of at most `max_length` tokens.

    Args:
        rows: the encoded rows, none longer than `max_length`.
        max_length: tokens of a sequence at most.
        seed: of the choice which rows are packed together.
        parts: rows of each source of a mixture, which are packed apart; default: all together.

    Attributes:
        packs: the rows of each sequence.
        parts: sequences of each source, one after another.
        lengths: int64 [N], tokens of each sequence.
    """

    def __init__(self, rows: EncodedRows, max_length: int, seed: int, parts: Sequence[int] | None = None) -> None:
        self.rows, self.max_length = rows, max_length
        self.packs: list[list[int]] = []
        self.parts: list[int] = []
        first = 0
        for lengths in rows.lengths.split([len(rows)] if parts is None else list(parts)):
            packs = pack_rows(lengths, max_length, seed)
            self.packs += [[first + row for row in pack] for pack in packs]
            self.parts.append(len(packs))
            first += len(lengths)
        self.lengths = torch.tensor([int(rows.lengths[pack].sum()) for pack in self.packs], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.packs)

    def __getitem__(self, index: int) -> Pack:
        return Pack(tuple(self.rows[row] for row in self.packs[index]))

    def identity(self) -> dict[str, int | str]:
        """Return the counts that must be unchanged, with the seed, for the packs to be the same ones."""
        return {**self.rows.identity(), "packing": self.max_length}


def pack_rows(lengths: torch.Tensor, max_length: int, seed: int) -> list[list[int]]:
    """Return the rows of each pack, every row once, by best fit: the longest first, each where it leaves least room.

    Rows are shuffled and packed in mega-batches of `MEGA_BATCH`, so that the packs are random ones.

    Args:
        lengths: int64 [N], tokens of each row, at most `max_length`.
        max_length: tokens of a pack at most.
        seed: of the shuffle.
    """
    order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(seed))
    packs: list[list[int]] = []
    for part in order.split(MEGA_BATCH):
        longest_first = part[torch.argsort(lengths[part], descending=True, stable=True)]
        rooms: list[tuple[int, int]] = []  # (free tokens, pack), sorted
        for row, length in zip(longest_first.tolist(), lengths[longest_first].tolist(), strict=True):
            at = bisect_left(rooms, (length, 0))
            if at == len(rooms):
                free, pack = max_length, len(packs)
                packs.append([])
            else:
                free, pack = rooms.pop(at)
            packs[pack].append(row)
            insort(rooms, (free - length, pack))
    return packs


@dataclass(frozen=True)
class PackCollator:
    """Make a batch of packs; picklable, so that worker processes can use it.

    Args:
        pad_id: token in the padding.
    """

    pad_id: int

    def __call__(self, packs: Sequence[Pack]) -> Batch:
        """Return the batch of `packs` (`B` sequences, `L` the longest, `R` rows in a pack at most).

        `input_ids`, `position_ids`, `labels` int64 [B, L]; `rows` int64 [B, R], the index of each row in its split,
        padded with -1; `num_tokens` int64 [], tokens that are neither padding nor blank; `row_mask` int64 [B, L], 0 on
        padding.

        There is no attention mask: without one, and without a cache, transformers lets a token attend only to those
        before it in its own run of consecutive positions. Padding at the end is such a run of its own. The first
        token of a row has no label, for the token before it belongs to another row.
        """
        length = max(sum(len(example.tokens) for example in pack.examples) for pack in packs)
        input_ids = torch.full((len(packs), length), self.pad_id, dtype=torch.int64)
        position_ids = torch.empty_like(input_ids)
        labels, row_mask = torch.full_like(input_ids, IGNORED), torch.ones_like(input_ids)
        rows = torch.full((len(packs), max(len(pack.examples) for pack in packs)), -1, dtype=torch.int64)
        counted = 0
        for number, pack in enumerate(packs):
            start = 0
            for place, example in enumerate(pack.examples):
                end = start + len(example.tokens)
                input_ids[number, start:end] = example.tokens
                position_ids[number, start:end] = torch.arange(end - start)
                for first, behind in example.spans.tolist():
                    first = max(1, first)
                    labels[number, start + first : start + behind] = example.tokens[first:behind]
                rows[number, place] = example.row
                counted += example.counted_tokens
                start = end
            position_ids[number, start:] = torch.arange(length - start)
            row_mask[number, start:] = 0
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "labels": labels,
            "row_mask": row_mask,
            "rows": rows,
            "num_tokens": torch.tensor(counted),
        }
