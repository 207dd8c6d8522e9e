"""The prompts that the original model continues, where rows are text of its own (`data.self_text.prompts`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from uniattn_pl.config.sections.data_section import BOS, DataConfig
from uniattn_pl.data.configured_sources import read_configured
from uniattn_pl.data.overlap import asked
from uniattn_pl.data.rows import Row
from uniattn_pl.data.split_rows import shuffled, taken
from uniattn_pl.errors import UserError


def continued_prompts(config: DataConfig, known: Mapping[str, Sequence[Row]], held_out: Sequence[Row]) -> list[Row]:
    """Return the rows whose prompts the model continues; none: it begins with BOS.

    Args:
        known: the training rows of sources that are read already, by name.
        held_out: rows whose prompts are not continued.

    Raises:
        UserError: no row has a prompt that may be continued.
    """
    place = config.self_text.prompts
    if place == BOS:
        return []
    if place in known:
        rows = known[place]
    else:
        other = read_configured(config, place)
        rows = taken(other, shuffled(other, config.shuffle_seed))[0]
    never = set(map(asked, held_out))
    prompts = [row for row in rows if not row.plain and asked(row) not in never]
    if not prompts:
        raise UserError(
            f"data.self_text.prompts: '{place}' has no row with a prompt that is not held out; {BOS} begins with none."
        )
    return prompts
