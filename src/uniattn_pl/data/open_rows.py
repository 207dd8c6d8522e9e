"""The rows of an experiment, read whole or streamed, as `data.streaming` says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.config.sections.dpo_section import DPO, SFT
from uniattn_pl.data.data_module import InstructionDataModule
from uniattn_pl.data.preference_data import PreferenceDataModule
from uniattn_pl.data.self_text import Original
from uniattn_pl.data.split import load_split
from uniattn_pl.data.split_rows import Split
from uniattn_pl.data.streaming.stream_module import StreamDataModule
from uniattn_pl.data.streaming.stream_split import StreamSplit, open_stream
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, TRAINING_ROWS, Contents

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def data_module(
    config: DataConfig, tokenizer: PreTrainedTokenizerBase, objective: str = SFT, /, **options: Any
) -> InstructionDataModule:
    """The data module of an experiment.

    Args:
        objective: `training.objective`, for which rows may be wanted as pairs.
        options: as of `InstructionDataModule`.
    """
    if objective == DPO:
        return PreferenceDataModule(config, tokenizer, **options)
    kind = StreamDataModule if config.streaming else InstructionDataModule
    return kind(config, tokenizer, **options)


def open_rows(config: DataConfig, original: Original | None = None) -> Split | StreamSplit:
    """The rows as they are split, without a tokenizer. Raises as `load_split` and `open_stream`."""
    return open_stream(config) if config.streaming else load_split(config, original)


def rows_contents(config: DataConfig, original: Original | None = None) -> dict[str, Contents]:
    """What an experiment trains on and what it holds out, by content. Raises as `open_rows`."""
    rows = open_rows(config, original)
    return {TRAINING_ROWS: rows.train_contents(), HELD_OUT_ROWS: rows.validation_contents()}
