"""Pairs of one experiment: the LightningDataModule of its rows, with a rejected response beside each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from uniattn_pl.config.sections.data_section import PREFERENCE
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.collation import Batch
from uniattn_pl.data.data_module import InstructionDataModule
from uniattn_pl.data.encoded_split import RowEncoder
from uniattn_pl.data.encoding import RefusedRow
from uniattn_pl.data.loader import ResumableLoader
from uniattn_pl.data.preference_pairs import PairCollator, PairedRows
from uniattn_pl.data.refused_rows import refused_row
from uniattn_pl.data.rows import Row
from uniattn_pl.data.split_rows import Split
from uniattn_pl.errors import UserError


class PreferenceDataModule(InstructionDataModule):
    """Instruction data whose rows, which are the chosen responses, can be had as pairs, too.

    Batches of pairs are as many sequences twice: `batch_size` and `micro_batch_size` count pairs.

    Attributes:
        train_pairs, held_out_pairs: in the order of the rows, once `setup` was called.
    """

    train_pairs: PairedRows
    held_out_pairs: PairedRows

    def _keep(self, split: Split, template: ChatTemplate | None) -> None:
        """Read the rejected responses.

        Raises:
            UserError: a row has none, or no pair fits `data.max_length`.
        """
        other = rejected_split(split)
        encoder = RowEncoder(self.config, self.tokenizer, template)
        try:
            (rejected,) = encoder.parts(other.train, [len(other.train)])
        except RefusedRow as refused:
            raise refused_row(other, refused, self.config, validation=False) from None
        try:
            (held_out,) = encoder.parts(other.validation, [len(other.validation)], with_choices=True)
        except RefusedRow as refused:
            raise refused_row(other, refused, self.config, validation=True) from None
        self.train_pairs = PairedRows(self._rows("train"), rejected)
        self.held_out_pairs = PairedRows(self._rows("validation"), held_out)
        if not len(self.train_pairs) or not len(self.held_out_pairs):
            raise UserError(
                f"of no row of '{split.source.source}' do both responses begin within data.max_length="
                f"{self.config.max_length} tokens; raise it."
            )

    @property
    def pair_counts(self) -> str:
        """How many pairs there are, and what was lost, in a line."""
        cut = sum(pairs.rejected.counts.truncated for pairs in (self.train_pairs, self.held_out_pairs))
        lost = f"; {cut:,} rejected responses cut at {self.config.max_length} tokens" if cut else ""
        return f"{len(self.train_pairs):,} pairs train, {len(self.held_out_pairs):,} validation{lost}"

    @property
    def pair_collator(self) -> PairCollator:
        """Makes batches of pairs."""
        return PairCollator(self._collator("train"))

    def pair_dataloader(self) -> ResumableLoader:
        """As `train_dataloader`, of pairs."""
        return ResumableLoader(self.train_pairs, self.pair_collator, **self._loading())

    def held_out_pair_batches(
        self, num_pairs: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """Return the first held-out pairs as this rank's batches, the longest first.

        Every rank gets the same number of batches; where there are too few, a blank one.

        Args:
            num_pairs: pairs at most, over all ranks.
            batch_size: sequences of a batch, two of each pair.
        """
        pairs, collator = self.held_out_pairs, self.pair_collator
        order = torch.argsort(pairs.lengths[:num_pairs], descending=True, stable=True)
        parts = order.split(max(1, batch_size // 2))
        batches = [collator([pairs[int(index)] for index in part]) for part in parts[rank::world_size]]
        if len(batches) < -(-len(parts) // world_size):
            batches.append(collator([pairs[0].blank()]))
        return batches


def rejected_split(split: Split) -> Split:
    """The same rows of a split with their rejected responses in place of the chosen ones.

    Raises:
        UserError: a row has no other response.
    """
    return replace(split, train=_rejected(split, split.train), validation=_rejected(split, split.validation))


def _rejected(split: Split, rows: Sequence[Row]) -> list[Row]:
    found = [row.rejected for row in rows if row.rejected is not None]
    if len(found) == len(rows):
        return found
    sources = [source for source in (split.source, split.validation_source) if source is not None]
    named = " and ".join(f"'{source.source}' (format {source.format})" for source in sources)
    raise UserError(
        f"{len(rows) - len(found):,} of {len(rows):,} rows of {named} have one response; training.objective=dpo "
        f"compares two: rows of the format {PREFERENCE} have prompt, chosen and rejected (or chosen and rejected, two "
        "conversations that begin alike)."
    )
