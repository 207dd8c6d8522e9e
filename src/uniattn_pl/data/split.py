"""From a data configuration to training and validation rows."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path

from uniattn_pl.config.schema import EMBEDDED, DataConfig
from uniattn_pl.data.embedded import EMBEDDED_TRAIN_ROWS
from uniattn_pl.data.rows import Row
from uniattn_pl.data.sources import SourceRows, read_source
from uniattn_pl.errors import UserError


@dataclass
class Split:
    """Training and validation rows, and what reading them left out.

    Args:
        train, validation: rows in the order of the split's shuffle.
        source: of the training rows (and of the validation rows, unless `validation_source` is given).
        validation_source: of the validation rows, if another one.
    """

    train: list[Row]
    validation: list[Row]
    source: SourceRows
    validation_source: SourceRows | None = None

    @property
    def overlap(self) -> int:
        """Validation rows whose instruction and input are also in the training rows."""
        train_prompts = {(row.instruction, row.input) for row in self.train}
        return sum((row.instruction, row.input) in train_prompts for row in self.validation)


def load_split(config: DataConfig) -> Split:
    """Read the rows and split them.

    Rows are shuffled with `random.Random(shuffle_seed).shuffle`. The first `validation_size` are the validation
    rows and the next ones train, so that the validation rows do not change with `num_samples`, which counts both.
    With a `validation_source`, its first `validation_size` rows (all, if it has fewer) are the validation rows.

    Raises:
        UserError: a source that cannot be read, or no row left to train on.
    """
    _check_validation_source(config)
    source = _read(config, config.source)
    rows = _shuffled(source, config.shuffle_seed)
    other = _read(config, config.validation_source) if config.validation_source else None
    if other:
        validation = _shuffled(other, config.shuffle_seed)[: config.validation_size]
        candidates = rows
    else:
        validation, candidates = rows[: config.validation_size], rows[config.validation_size :]
    available = len(candidates) + len(validation)
    used = _used_rows(config, len(validation), available)
    train = candidates[: used - len(validation)]
    if not train:
        limit = f"data.num_samples={config.num_samples}" if used < available else f"the {available} rows"
        raise UserError(
            f"data.validation_size={config.validation_size} leaves no row to train on out of {limit} of "
            f"'{config.source}'; it must be at most {max(0, used - 1)}."
        )
    # The rows now live in `train` and `validation`; keep the counts only.
    return Split(train, validation, replace(source, rows=[]), replace(other, rows=[]) if other else None)


def _check_validation_source(config: DataConfig) -> None:
    source, other = config.source, config.validation_source
    if other and (other == source or Path(other).expanduser().resolve() == Path(source).expanduser().resolve()):
        raise UserError(
            f"data.validation_source is the same as data.source ('{source}'), so every validation row would be "
            "trained on; leave it null to split validation_size rows off."
        )


def _read(config: DataConfig, source: str) -> SourceRows:
    return read_source(source, split=config.split, format=config.format, on_bad_row=config.on_bad_row)


def _shuffled(source: SourceRows, seed: int) -> list[Row]:
    rows = list(source.rows)
    random.Random(seed).shuffle(rows)
    return rows


def _used_rows(config: DataConfig, validation: int, available: int) -> int:
    """Return how many rows are used, training and validation together."""
    if config.num_samples is None:
        return min(available, EMBEDDED_TRAIN_ROWS + validation) if config.source == EMBEDDED else available
    if config.source == EMBEDDED and config.num_samples > available:
        raise UserError(
            f"data.num_samples={config.num_samples} is more than the embedded data set has; at most {available}."
        )
    return min(config.num_samples, available)
