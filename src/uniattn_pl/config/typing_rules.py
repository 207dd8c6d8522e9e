"""Whether a value fits a field's type hint, and how to say so in words."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from uniattn_pl.errors import did_you_mean

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
}


class Mismatch(Exception):
    """The value does not fit the hint."""


def field_hints(cls: type) -> dict[str, tuple[Any, dataclasses.Field[Any]]]:
    """Return name -> (resolved type hint, field) of a dataclass's init fields."""
    hints = get_type_hints(cls)
    return {field.name: (hints[field.name], field) for field in dataclasses.fields(cls) if field.init}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return a field's default, from its factory if it has one; `dataclasses.MISSING` where a value is required."""
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default


def coerce(value: Any, text: str | None, hint: Any) -> Any:
    """Return `value` as `hint` asks; `text` is the scalar as written, so that `name: 1.10` stays `1.10`.

    Raises:
        Mismatch: the value does not fit.
    """
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _coerce_union(value, text, arguments)
    if origin in (list, tuple) or hint in (list, tuple):
        if not isinstance(value, list | tuple):
            raise Mismatch
        return (origin or hint)(coerce(item, None, arguments[0] if arguments else Any) for item in value)
    if origin is dict or hint is dict:
        if not isinstance(value, Mapping):
            raise Mismatch
        return {str(key): item for key, item in value.items()}
    return _coerce_scalar(value, text, hint)


def _coerce_union(value: Any, text: str | None, members: tuple[Any, ...]) -> Any:
    if value is None and type(None) in members:
        return None
    for member in sorted(members, key=lambda m: m is str):  # text last: it would take everything
        try:
            return coerce(value, text, member)
        except Mismatch:
            continue
    raise Mismatch


def _coerce_scalar(value: Any, text: str | None, hint: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is str and text and value is not None:
        return text
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and number and value == int(value):
        return int(value)
    if hint is float and number:
        return float(value)
    raise Mismatch


def describe(hint: Any) -> str:
    """Say a type hint in words: `int | None` is 'a whole number or null'."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(describe(member) for member in get_args(hint))
    if get_origin(hint) in (list, tuple) and get_args(hint):
        return f"a list, each item {describe(get_args(hint)[0])}"
    return _WORDS.get(get_origin(hint) or hint, getattr(hint, "__name__", str(hint)))


def show(value: Any) -> str:
    """Show a user's value in a message."""
    if isinstance(value, Mapping):
        return "a mapping"
    return "nothing" if value is None else repr(value)


def fit_to_type(value: Any, text: str | None, hint: Any, field: dataclasses.Field[Any]) -> tuple[Any, str | None]:
    """Return the converted value and, if it is unusable, what is wrong with it (type, `allowed` or `minimum`)."""
    try:
        value = coerce(value, text, hint)
    except Mismatch:
        return value, f"expected {describe(hint)}, got {show(value)}."
    allowed = field.metadata.get("allowed") or ()
    minimum = field.metadata.get("minimum")
    if allowed and value is not None and value not in allowed:
        near = did_you_mean(str(value), map(str, allowed))
        return value, f"must be one of {', '.join(map(str, allowed))}; got {show(value)}.{near}"
    if minimum is not None:
        for number in value if isinstance(value, list | tuple) else [value]:
            if isinstance(number, int | float) and number < minimum:
                return value, f"must be at least {minimum:g}, got {number}."
    return value, None
