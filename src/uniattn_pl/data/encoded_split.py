"""The rows of a split as tokens: what is trained on, in which packs and shares, and what is held out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.encoded_rows import EncodedRows
from uniattn_pl.data.encoding import RefusedRow, encode_rows
from uniattn_pl.data.joined_rows import joined_rows
from uniattn_pl.data.mixture_loader import EpochShares
from uniattn_pl.data.packing import PackedRows
from uniattn_pl.data.refused_rows import refused_row
from uniattn_pl.data.rows import Row
from uniattn_pl.data.split_rows import Split, cut
from uniattn_pl.data.token_cache import encode_cached
from uniattn_pl.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedSplit:
    """A split as token sequences.

    Attributes:
        train, validation: all sequences; of a mixture source by source.
        parts: the training sequences of each source of a mixture; of no mixture one, all of them.
        held_out: how many of the validation sequences are of each source.
        packs: of the training sequences, where they are packed.
        weights: of the sources of a mixture; None: each brings all it has.
        seed: of packs and epochs.
    """

    train: EncodedRows
    validation: EncodedRows
    parts: tuple[EncodedRows, ...]
    held_out: tuple[int, ...]
    packs: PackedRows | None
    weights: tuple[float, ...] | None
    seed: int

    @cached_property
    def shares(self) -> EpochShares | None:
        """What each source brings to an epoch, counted in what is drawn: packs, or sequences. None: one source."""
        if len(self.parts) == 1:
            return None
        counts = [len(part) for part in self.parts] if self.packs is None else self.packs.parts
        return EpochShares(tuple(counts), self.weights, self.seed)

    @cached_property
    def sample_order(self) -> torch.Tensor:
        """The training sequences as calibration and search take them, int64 [N]; of a mixture by its shares."""
        if len(self.parts) == 1:
            return torch.arange(len(self.train))
        shares = EpochShares(tuple(map(len, self.parts)), self.weights, self.seed)
        drawn = shares.epoch(0)
        drawn = drawn[torch.randperm(len(drawn), generator=torch.Generator().manual_seed(self.seed))]
        return torch.tensor(list(dict.fromkeys([*drawn.tolist(), *range(len(self.train))])))

    @cached_property
    def validation_order(self) -> torch.Tensor:
        """The validation sequences, int64 [N], one of each source after the other: the first few are of all of them."""
        return in_turns(self.held_out)


def in_turns(counts: Sequence[int]) -> torch.Tensor:
    """Indices of the sequences of several sources that follow one another, int64 [N], one of each in turn."""
    return torch.argsort(torch.cat([torch.arange(count) for count in counts]), stable=True)


def encode_split(
    config: DataConfig,
    split: Split,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    template: ChatTemplate | None = None,
) -> EncodedSplit:
    """Tokenise a split, every source by itself: documents of one do not run into another's.

    Args:
        seed: of packs and epochs.
        template: that rows are put into; None: the paper's prompt.

    Raises:
        UserError: as `encode_rows`; the template does not take a row; no row of a source can be used.
    """
    sizes = [part.train_rows for part in split.parts] or [len(split.train)]
    encoder = RowEncoder(config, tokenizer, template)
    try:
        trained = encoder.parts(split.train, sizes)
    except RefusedRow as refused:
        raise refused_row(split, refused, config, validation=False) from None
    for part, source in zip(trained, [part.source.source for part in split.parts] or [config.name], strict=True):
        if not len(part):
            raise no_usable_row("training", source, config.max_length)
    try:
        validation, held_out = encoder.held_out(split.validation, split.held_out_parts)
    except RefusedRow as refused:
        raise refused_row(split, refused, config, validation=True) from None
    train = joined_rows(trained, sizes)
    weights = tuple(part.weight for part in split.parts if part.weight is not None)
    packs = PackedRows(train, config.max_length, seed, [len(part) for part in trained]) if config.packing else None
    return EncodedSplit(train, validation, tuple(trained), held_out, packs, weights or None, seed)


@dataclass(frozen=True)
class RowEncoder:
    """Makes tokens of rows as the `data` section says, source by source.

    Args:
        config: the `data` section.
        tokenizer: of the model.
        template: that rows are put into; None: the paper's prompt.
    """

    config: DataConfig
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate | None

    def parts(self, rows: Sequence[Row], sizes: Sequence[int], *, with_choices: bool = False) -> list[EncodedRows]:
        """Each source's rows as tokens.

        Args:
            rows: of all sources, one after another.
            sizes: rows of each.
            with_choices: as of `encode_rows`.

        Raises:
            UserError, RefusedRow: as `encode_rows`; a refused row is counted among all.
        """
        encode = encode_cached if self.config.token_cache else encode_rows
        parts: list[EncodedRows] = []
        for number, part in enumerate(cut(rows, sizes)):
            try:
                encoded = encode(
                    part,
                    self.tokenizer,
                    self.config.max_length,
                    with_choices=with_choices,
                    template=self.template,
                    skip_refused=self.config.on_bad_row == "skip",
                    pack_documents=self.config.pack_documents,
                )
            except RefusedRow as refused:
                raise RefusedRow(sum(sizes[:number]) + refused.number, str(refused)) from None
            parts.append(encoded)
        return parts

    def held_out(self, rows: Sequence[Row], sizes: Sequence[int]) -> tuple[EncodedRows, tuple[int, ...]]:
        """Validation rows as tokens, and the number of sequences of each source; as `parts`.

        Raises:
            UserError: no row can be used.
        """
        parts = self.parts(rows, sizes, with_choices=True)
        if not sum(map(len, parts)):
            name = self.config.validation_source or self.config.name
            raise no_usable_row("validation", name, self.config.max_length)
        return joined_rows(parts, sizes), tuple(map(len, parts))


def no_usable_row(name: str, source: str, max_length: int) -> UserError:
    """What to tell where the prompts of all training or validation rows of a source are too long."""
    return UserError(
        f"no {name} row of '{source}' has a prompt shorter than data.max_length={max_length} tokens; raise it."
    )
