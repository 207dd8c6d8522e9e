"""The LightningDataModule: rows, split, tokens and loaders of one experiment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.data.chat_template import ChatTemplate, template_contents
from uniattn_pl.data.collation import Batch, Collator
from uniattn_pl.data.data_report import RowsReport, report_of
from uniattn_pl.data.encoded_rows import EncodedRows
from uniattn_pl.data.encoded_split import EncodedSplit, encode_split
from uniattn_pl.data.held_out_prompts import HeldOutPrompt, first_prompts
from uniattn_pl.data.loader import FixedBatches, ResumableLoader
from uniattn_pl.data.mixture_loader import MixtureLoader
from uniattn_pl.data.packing import PackCollator
from uniattn_pl.data.row_layout import check_packing
from uniattn_pl.data.rows import Row
from uniattn_pl.data.self_text import Original
from uniattn_pl.data.split import load_split
from uniattn_pl.data.split_rows import Split
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InstructionDataModule(pl.LightningDataModule):
    """Instruction data in the paper's prompt, tokenised once, in length-grouped and resumable micro batches.

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
        self._encoded: EncodedSplit | None = None
        self._report: RowsReport | None = None
        self._validation_rows: Sequence[Row] = ()
        self._contents: dict[str, Contents] = {}

    def setup(self, stage: str | None = None) -> None:
        """Read, split and tokenise the rows, the first time it is called.

        Raises:
            UserError: data that cannot be read or used; see `load_split`, `ChatTemplate.of` and `encode_split`.
        """
        if self._report is not None:
            return
        check_packing(self.config.packing, self.tokenizer)
        template = ChatTemplate.of(self.config, self.tokenizer)
        split = load_split(self.config, self._original)
        rows = {TRAINING_ROWS: split.train_contents(), HELD_OUT_ROWS: split.validation_contents()}
        self._contents = {**rows, **template_contents(template)}
        self._validation_rows = split.validation
        self._encoded = encode_split(self.config, split, self.tokenizer, self.seed, template)
        self._report = report_of(self.config, split, self._encoded)
        self._keep(split, template)

    def _keep(self, split: Split, template: ChatTemplate | None) -> None:
        """Take what else is wanted of the rows as they were read; by itself nothing."""

    @property
    def contents(self) -> dict[str, Contents]:
        """The rows that train and are held out, and their chat template, under the names of `resilience.identity`."""
        self.setup()
        return self._contents

    @property
    def report(self) -> RowsReport:
        """The counts of what was read, used and lost."""
        self.setup()
        assert self._report is not None
        return self._report

    def train_dataloader(self, steps: int | None = None) -> ResumableLoader:
        """Return a new loader at the beginning of epoch 0; Lightning restores its position from a checkpoint.

        Args:
            steps: optimizer steps that will be asked of it; only a stream must know.
        """
        split, collator, options = self._split, self._collator("train"), self._loading()
        items = split.train if split.packs is None else split.packs
        collate = collator if split.packs is None else PackCollator(collator.pad_id)
        if split.shares is not None:
            return MixtureLoader(items, collate, shares=split.shares, **options)
        return ResumableLoader(items, collate, **options)

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
    def plain_text(self) -> bool:
        """Whether what is held out are plain texts alone, of which every token is scored: then perplexity is told."""
        return self.report.plain_text

    def has_train_row(self, row: int) -> bool:
        """Whether there is a training row of this number, counted as `train_batches` takes them."""
        return row < len(self._split.train)

    def train_length(self, row: int) -> int:
        """Tokens of one training row, counted as `train_batches` takes them."""
        return int(self._split.train.lengths[self._split.sample_order[row]])

    def train_batches(self, num_samples: int, batch_size: int, *, first: int = 0) -> list[Batch]:
        """Return `num_samples` training rows from `first` on (all, if fewer) as batches, longest first, unsharded.

        Of a mixture they are drawn as in an epoch.
        """
        return self._batches("train", self._split.sample_order[first : first + num_samples], batch_size)

    def validation_batches(
        self, num_samples: int, batch_size: int, *, rank: int = 0, world_size: int = 1
    ) -> list[Batch]:
        """Return the first `num_samples` validation rows (all, if fewer) as batches, the longest first.

        Of a mixture they are of its sources in turn.
        With checkable rows the batches also hold `choice_ids`, `answer_index` and `answer_position`. Every rank gets
        the same number of batches; where there are too few, a blank one.
        """
        batches = self._batches("validation", self._split.validation_order[:num_samples], batch_size)
        batches_of_rank = batches[rank::world_size]
        if len(batches_of_rank) < -(-len(batches) // world_size):
            batches_of_rank.append(self._collator("validation")([self._rows("validation")[0].blank()]))
        return batches_of_rank

    def first_prompts(self, count: int) -> list[HeldOutPrompt]:
        """Return the first `count` validation rows (all, if fewer) as a model is asked them."""
        split = self._split
        order = split.validation_order[:count].tolist()
        return first_prompts(split.validation, order, self._validation_rows, self.tokenizer)

    def _batches(self, name: str, chosen: torch.Tensor, batch_size: int) -> list[Batch]:
        rows, collator = self._rows(name), self._collator(name)
        order = chosen[torch.argsort(rows.lengths[chosen], descending=True, stable=True)]
        parts = [order[start : start + batch_size].tolist() for start in range(0, len(order), batch_size)]
        return [collator([rows[index] for index in part]) for part in parts]

    @property
    def _split(self) -> EncodedSplit:
        self.setup()
        assert self._encoded is not None
        return self._encoded

    def _rows(self, name: str) -> EncodedRows:
        return self._split.train if name == "train" else self._split.validation

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
