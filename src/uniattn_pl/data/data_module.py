"""The LightningDataModule: rows, split, tokens and loaders of one experiment."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.chat_template import ChatTemplate, RefusedChat, template_contents
from uniattn_pl.data.collation import Batch, Collator
from uniattn_pl.data.data_report import DataReport
from uniattn_pl.data.encoded_rows import EncodedRows
from uniattn_pl.data.encoding import RefusedRow, encode_rows
from uniattn_pl.data.loader import FixedBatches, ResumableLoader
from uniattn_pl.data.packing import PackCollator, PackedRows
from uniattn_pl.data.row_layout import check_packing
from uniattn_pl.data.self_text import Original
from uniattn_pl.data.sources import SKIPPING
from uniattn_pl.data.split import Split, load_split
from uniattn_pl.data.token_cache import encode_cached
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


WRITTEN_BEFORE = 10_000  # rows that are put into a chat template before a fit starts: some seconds


class InstructionDataModule(pl.LightningDataModule):
    """Instruction data in a prompt, or chats, tokenised once, in length-grouped and resumable micro batches.

    With `data.packing` the items of training batches are packs of rows; validation and calibration see single rows.

    Args:
        config: the `data` section of an experiment.
        tokenizer: of the model; its pad id falls back to EOS.
        batch_size: sequences of one optimizer step, over all devices and micro batches.
        micro_batch_size: sequences per forward on one device.
        eval_batch_size: sequences per forward of the validation loader.
        seed: of the training order; with the epoch.
        original: the model whose text is sampled, where a source is `self`.
        rank, world_size: this process among those that divide the data; None: asks the attached Trainer, else 0 of 1.
    """

    def __init__(
        self,
        config: DataConfig,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int,
        micro_batch_size: int,
        eval_batch_size: int,
        seed: int,
        rank: int | None = None,
        world_size: int | None = None,
        original: Original | None = None,
    ) -> None:
        super().__init__()
        self.config, self.tokenizer, self.seed = config, tokenizer, seed
        self.batch_size, self.micro_batch_size, self.eval_batch_size = batch_size, micro_batch_size, eval_batch_size
        self._rank, self._world_size = rank, world_size
        self._original = original
        self._train: EncodedRows | None = None
        self._validation: EncodedRows | None = None
        self._packs: PackedRows | None = None
        self._report: DataReport | None = None
        self._contents: dict[str, Contents] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise the rows, the first time it is called.

        Raises:
            UserError: data that cannot be read or used; see `load_split`, `ChatTemplate.of` and `encode_rows`.
        """
        if self._report is not None:
            return
        check_packing(self.config.packing, self.tokenizer)
        template = ChatTemplate.of(self.config, self.tokenizer)
        split = load_split(self.config, self._original)
        max_length = self.config.max_length
        trained, held_out = split.train_contents(), split.validation_contents()
        self._contents = {TRAINING_ROWS: trained, HELD_OUT_ROWS: held_out, **template_contents(template)}
        self._train = self._encoded(split, template, trained)
        self._validation = self._encoded(split, template, held_out, validation=True)
        for name, encoded in (("training", self._train), ("validation", self._validation)):
            if not len(encoded):
                raise no_usable_row(name, self.config)
        if self.config.packing:
            self._packs = PackedRows(self._train, max_length, self.seed)
        self._report = _report(self.config, split, self._train, self._validation, self._packs)
        self._keep(split, template)

    def _encoded(
        self, split: Split, template: ChatTemplate | None, contents: Contents, *, validation: bool = False
    ) -> EncodedRows:
        rows, config = split.validation if validation else split.train, self.config
        options: dict[str, Any] = {
            "with_choices": validation,
            "template": template,
            "skip_refused": config.on_bad_row == "skip",
        }
        try:
            if config.token_cache:
                return encode_cached(rows, self.tokenizer, config.max_length, contents=contents, **options)
            return encode_rows(rows, self.tokenizer, config.max_length, **options)
        except RefusedRow as refused:
            raise refused_row(split, refused, config, validation=validation) from None

    def _keep(self, split: Split, template: ChatTemplate | None) -> None:
        """Take what else is wanted of the rows as they were read; by itself nothing."""

    @property
    def contents(self) -> dict[str, Contents]:
        """The rows that train and are held out, and their chat template, under the names of `resilience.identity`."""
        self.setup()
        return self._contents

    @property
    def report(self) -> DataReport:
        """The counts of what was read, used and lost."""
        self.setup()
        assert self._report is not None
        return self._report

    def train_dataloader(self) -> ResumableLoader:
        """Return a new loader at the beginning of epoch 0; Lightning restores its position from a checkpoint."""
        rows, collator = self._rows("train"), self._collator("train")
        return ResumableLoader(
            rows if self._packs is None else self._packs,
            collator if self._packs is None else PackCollator(collator.pad_id),
            **self._loading(),
        )

    def _loading(self) -> dict[str, Any]:
        """How a loader deals out what is trained on."""
        rank, world_size = self._place_among_ranks()
        return {
            "batch_size": self.batch_size,
            "micro_batch_size": self.micro_batch_size,
            "seed": self.seed,
            "rank": rank,
            "world_size": world_size,
            "num_workers": self.config.num_workers,
        }

    def val_dataloader(self) -> FixedBatches:
        """Return this rank's validation batches, sorted by length; every rank gets the same number.

        Where the rows do not divide among the ranks, a row is repeated with its labels and answer blanked, so that
        sums over the ranks count each row once. Lightning leaves this loader as it is (no sampler to replace).
        """
        rank, world_size = self._place_among_ranks()
        rows, collator = self._rows("validation"), self._collator("validation")
        order = torch.argsort(rows.lengths, descending=True, stable=True).tolist()
        batches = []
        for start in range(0, len(order), self.eval_batch_size * world_size):
            group = order[start : start + self.eval_batch_size * world_size]
            rows_of_rank = [rows[index] for index in group[rank::world_size]]
            batches.append(collator(rows_of_rank or [rows[group[0]].blank()]))
        return FixedBatches(batches)

    @property
    def num_train_rows(self) -> int:
        return len(self._rows("train"))

    def train_length(self, row: int) -> int:
        """Tokens of one training row."""
        return int(self._rows("train").lengths[row])

    def train_batches(self, num_samples: int, batch_size: int, *, first: int = 0) -> list[Batch]:
        """Return `num_samples` training rows from `first` on (all, if fewer) as batches, longest first, unsharded."""
        return self._batches("train", num_samples, batch_size, first)

    def validation_batches(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """Return the first `num_samples` validation rows (all, if fewer) as batches, the longest first.

        With checkable rows the batches also hold `choice_ids`, `answer_index` and `answer_position`. Every rank gets
        the same number of batches; where there are too few, a blank one.
        """
        batches = self._batches("validation", num_samples, batch_size)
        batches_of_rank = batches[rank::world_size]
        if len(batches_of_rank) < -(-len(batches) // world_size):
            batches_of_rank.append(self._collator("validation")([self._rows("validation")[0].blank()]))
        return batches_of_rank

    def _batches(self, name: str, num_samples: int, batch_size: int, first: int = 0) -> list[Batch]:
        rows, collator = self._rows(name), self._collator(name)
        order = first + torch.argsort(rows.lengths[first : first + num_samples], descending=True, stable=True)
        parts = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
        return [collator([rows[index] for index in part]) for part in parts]

    def _rows(self, name: str) -> EncodedRows:
        self.setup()
        rows = self._train if name == "train" else self._validation
        assert rows is not None
        return rows

    def _collator(self, name: str) -> Collator:
        pad = self.tokenizer.pad_token_id
        pad_id = self.tokenizer.eos_token_id if pad is None else pad
        return Collator(int(pad_id), with_choices=name == "validation" and self._rows(name).checkable)

    def _place_among_ranks(self) -> tuple[int, int]:
        """Return (rank, world size) of this process among those that divide the data."""
        if self._rank is not None or self._world_size is not None:
            return self._rank or 0, self._world_size or 1
        if self.trainer is None:
            return 0, 1
        # The strategy knows: under tensor parallelism several processes need the same rows.
        sampler = getattr(self.trainer.strategy, "distributed_sampler_kwargs", None)
        return (sampler["rank"], sampler["num_replicas"]) if sampler else (0, 1)


def refused_row(split: Split, refused: RefusedRow, config: DataConfig, *, validation: bool) -> UserError:
    """What to tell where the chat template does not take a row."""
    place = split.place(refused.number, config.split, validation=validation)
    return UserError(f"{place}: {refused}; {SKIPPING}")


def check_chats(split: Split, template: ChatTemplate, config: DataConfig) -> None:
    """Check that a chat template takes the first rows of a split; of the others a fit says so, before it loads a model.

    Raises:
        UserError: naming the file and the line of a row that it does not take; none where such rows are skipped.
    """
    if config.on_bad_row == "skip":
        return
    for validation, rows in ((False, split.train), (True, split.validation)):
        for number, row in enumerate(rows[:WRITTEN_BEFORE]):
            try:
                if not row.plain:
                    template.learned(row.conversation, continues=row.continues)
            except RefusedChat as refused:
                raise refused_row(split, RefusedRow(number, str(refused)), config, validation=validation) from None


def no_usable_row(name: str, config: DataConfig) -> UserError:
    """What to tell where the prompts of all training or validation rows are too long."""
    return UserError(
        f"no {name} row of '{config.source}' has a prompt shorter than data.max_length={config.max_length} tokens; "
        "raise it."
    )


def _report(
    config: DataConfig, split: Split, train: EncodedRows, validation: EncodedRows, packs: PackedRows | None
) -> DataReport:
    sources = [source for source in (split.source, split.validation_source) if source]
    both = (train, validation)
    return DataReport(
        source=split.source.source,
        format=split.source.format,
        rows_read=sum(source.read for source in sources),
        skipped=sum(source.skipped for source in sources),
        filtered=sum(source.filtered for source in sources),
        train_rows=len(split.train),
        validation_rows=len(split.validation),
        train=len(train),
        validation=len(validation),
        max_length=config.max_length,
        dropped_train=train.counts.dropped,
        overlap=split.overlap,
        tokens=int(train.lengths.sum()),
        response_tokens=train.response_tokens,
        validation_response_tokens=validation.response_tokens,
        longest=max(part.longest for part in both),
        packs=0 if packs is None else len(packs),
        template=config.template,
        **{name: count + getattr(validation.counts, name) for name, count in asdict(train.counts).items()},
    )
