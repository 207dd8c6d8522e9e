"""The rows of an experiment, read whole or streamed, as `data.streaming` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.config.sections.dpo_section import DPO, SFT
from uniattn_pl.data.chat_template import ChatTemplate
from uniattn_pl.data.data_module import InstructionDataModule
from uniattn_pl.data.encoded_split import RowEncoder, in_turns
from uniattn_pl.data.encoding import RefusedRow
from uniattn_pl.data.held_out_prompts import HeldOutPrompt, prompt_of
from uniattn_pl.data.preference_data import PreferenceDataModule
from uniattn_pl.data.self_text import Original
from uniattn_pl.data.split import load_split
from uniattn_pl.data.split_rows import Split
from uniattn_pl.data.streaming.stream_module import StreamDataModule
from uniattn_pl.data.streaming.stream_split import StreamSplit, open_stream
from uniattn_pl.errors import UserError
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


def held_out_prompts(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    numbers: Sequence[int],
    original: Original | None = None,
) -> list[HeldOutPrompt]:
    """Read an experiment's rows and return held-out ones by their numbers; those that train are not tokenised.

    Args:
        config: the `data` section.
        tokenizer: of the model that is asked.
        numbers: from 0.
        original: as of `open_rows`.

    Raises:
        UserError: as `open_rows` and `RowEncoder.held_out`; a number that no row has.
    """
    opened = open_rows(config, original)
    encoder = RowEncoder(config, tokenizer, ChatTemplate.of(config, tokenizer))
    try:
        validation, parts = encoder.held_out(opened.validation, opened.held_out_parts)
    except RefusedRow as refused:
        raise UserError(f"held-out row {refused.number}: {refused}") from None
    beyond = [number for number in numbers if not 0 <= number < len(validation)]
    if beyond:
        raise UserError(
            f"--row {beyond[0]}: the held-out rows of '{config.name}' are numbered from 0 to {len(validation) - 1}."
        )
    order = in_turns(parts)
    return [prompt_of(number, validation[int(order[number])], opened.validation, tokenizer) for number in numbers]
