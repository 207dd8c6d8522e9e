"""The keys of a section and of the sections inside it, flat."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from uniattn_pl.config.typing_rules import default_of, field_hints
from uniattn_pl.config.yaml_documents import KeyPath

Field = tuple[Any, dataclasses.Field[Any]]


def section_fields(cls: type, path: KeyPath = ()) -> Iterable[tuple[KeyPath, Field]]:
    """Yield every key of a section and of those inside it: its path, and its type hint with its field."""
    for name, (hint, field) in field_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _with_defaults(hint, (*path, name), field)
        else:
            yield (*path, name), (hint, field)


def _with_defaults(hint: Any, path: KeyPath, section: dataclasses.Field[Any]) -> Iterable[tuple[KeyPath, Field]]:
    """Yield the fields of a section, with the defaults that its parent gives it."""
    defaults = default_of(section)
    for inner, (inner_hint, field) in section_fields(hint, path):
        value = defaults
        for key in inner[len(path) :]:
            value = getattr(value, key)
        replacement: dataclasses.Field[Any] = dataclasses.field(default=value, metadata=field.metadata)
        yield inner, (inner_hint, replacement)
