"""A config that was kept as plain data, as a run keeps its own: a layer below the files and overrides of a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uniattn_pl.config.interpolation import escape
from uniattn_pl.config.loaded_config import flatten
from uniattn_pl.config.yaml_documents import Entry, Layer
from uniattn_pl.config.yaml_scalars import dump_value
from uniattn_pl.redaction import HIDDEN

# Places that a run was made from: whoever needs one says so where it is gone.
PLACES = (
    "model.source",
    "data.source",
    "data.more_files",
    "data.further_sources",
    "data.sources",
    "data.template",
    "data.validation_source",
    "data.self_text.prompts",
    "evaluation.text",
    "evaluation.data_dir",
)


def plain_layer(plain: Mapping[str, Any], origin: str) -> Layer:
    """The values of a resolved config; credentials, which were not kept, are left out.

    Args:
        plain: nested, as `plain_config` returns it.
        origin: what messages name as the place of a value.
    """
    entries = []
    for key, value in flatten(plain).items():
        path = tuple(key.split("."))
        if HIDDEN not in str(value):
            text = value if isinstance(value, str) else None if isinstance(value, dict | list) else dump_value(value)
            entries.append(Entry(path, (origin,) * len(path), escape(value), text and escape(text)))
    return Layer(tuple(entries))
