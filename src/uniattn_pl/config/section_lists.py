"""A list whose items are sections, as `data.sources`: each item has the keys of one dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from uniattn_pl.config.typing_rules import default_of, field_hints, fit_to_type, show
from uniattn_pl.errors import did_you_mean


def section_of(hint: Any) -> type | None:
    """The dataclass whose keys the items of a list have, from the list's type hint; None: it is no such list."""
    for member in get_args(hint):
        if get_origin(member) is list and dataclasses.is_dataclass(get_args(member)[0]):
            return get_args(member)[0]  # type: ignore[no-any-return]
    return None


def fit_sections(value: Any, section: type) -> tuple[list[Any] | None, list[str]]:
    """Return the items as `section`, and what is wrong with those that are not.

    Args:
        value: as written: a list of mappings, or nothing.
        section: a dataclass; every field has a default.
    """
    if value is None:
        return None, []
    if not isinstance(value, list):
        return None, [f"expected a list, each item {_keys(section)}; got {show(value)}."]
    items, problems = [], list[str]()
    for number, item in enumerate(value, 1):
        fitted, wrong = _fit(item, section)
        items.append(fitted)
        problems += [f"entry {number}: {problem}" for problem in wrong]
    return items, problems


def _fit(item: Any, section: type) -> tuple[Any, list[str]]:
    if dataclasses.is_dataclass(item):  # fitted before
        return item, []
    if not isinstance(item, Mapping):
        return section(), [f"expected {_keys(section)}; got {show(item)}."]
    hints, values, problems = field_hints(section), dict[str, Any](), list[str]()
    for key, given in item.items():
        if str(key) not in hints:
            near = did_you_mean(str(key), hints) or f" Known here: {', '.join(hints)}."
            problems.append(f"unknown key '{key}'.{near}")
            continue
        hint, field = hints[str(key)]
        values[str(key)], problem = fit_to_type(given, given if isinstance(given, str) else None, hint, field)
        if problem:
            values[str(key)] = default_of(field)
            problems.append(f"{key}: {problem}")
    return section(**values), problems


def _keys(section: type) -> str:
    return f"a mapping of {', '.join(field_hints(section))}"
