"""From a data configuration to training and validation rows.

Of a mixture (`data.sources`) every source is split (`data/mixture.py`). Otherwise one is; what else is trained on
(further sources, text sampled from the original) is added to its training rows, so that a fit with it has the held-out
rows of one without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uniattn_pl.config.sections.data_section import EMBEDDED, SELF, DataConfig
from uniattn_pl.data.configured_sources import read_configured, read_own
from uniattn_pl.data.continued_prompts import continued_prompts
from uniattn_pl.data.documents import check_documents
from uniattn_pl.data.embedded import EMBEDDED_TRAIN_ROWS
from uniattn_pl.data.mixture import load_mixture
from uniattn_pl.data.rows import Row
from uniattn_pl.data.self_text import Original, self_rows
from uniattn_pl.data.sources import SourceRows, joined_sources
from uniattn_pl.data.split_rows import Split, counts_of, part_of, shuffled, taken, without_held_out
from uniattn_pl.errors import UserError


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
    if config.sources is not None:
        return load_mixture(config, original)
    _check_validation_source(config)
    own = SourceRows(SELF, SELF) if config.split_source is None else read_own(config, config.split_source)
    order = shuffled(own, config.shuffle_seed)
    other = read_own(config, config.validation_source) if config.validation_source else None
    if other:
        validation = shuffled(other, config.shuffle_seed)[: config.validation_size]
        candidates = order
    else:
        validation, candidates = order[: config.validation_size], order[config.validation_size :]
    validation_rows, validation_numbers = taken(other or own, validation, documents=config.pack_documents)
    source = own
    if len(config.training_sources) > 1 or config.source == SELF:
        source = _joined(config, part_of(own, candidates), validation_rows, original)
        candidates = shuffled(source, config.shuffle_seed)
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
    kept = without_held_out(source, train, validation_rows) if config.remove_overlap else train
    if not kept:
        raise UserError(
            f"data.remove_overlap leaves no row to train on: each of the {len(train)} of '{source.source}' asks what a "
            "held-out row asks."
        )
    train_rows, train_numbers = taken(source, kept, documents=config.pack_documents)
    check_documents(config.pack_documents, train_rows, source.source)
    return Split(
        train_rows,
        validation_rows,
        counts_of(source),
        train_numbers,
        validation_numbers,
        counts_of(other) if other else None,
        removed=len(train) - len(kept),
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
    parts = {name: read_configured(config, name) for name in config.further_sources or [] if name != SELF}
    if config.source == EMBEDDED:
        own = part_of(own, range(min(len(own.rows), EMBEDDED_TRAIN_ROWS)))
    if SELF in config.training_sources:  # behind the others, whose problems show before anything is sampled
        if original is None:
            raise UserError(f"data.source={SELF} needs a model, whose text it is.")
        known = {place: own.rows for place in (config.split_source,) if place is not None}
        parts[SELF] = self_rows(config.self_text, continued_prompts(config, known, held_out), original, config)
    return joined_sources([parts.get(name, own) for name in config.training_sources])


def _used_rows(config: DataConfig, validation: int, available: int) -> int:
    """Return how many rows are used, training and validation together."""
    embedded = config.training_sources == [EMBEDDED]
    if config.num_samples is None:
        return min(available, EMBEDDED_TRAIN_ROWS + validation) if embedded else available
    if embedded and config.num_samples > available:
        raise UserError(
            f"data.num_samples={config.num_samples} is more than the embedded data set has; at most {available}."
        )
    return min(config.num_samples, available)
