"""Whether a value fits a field's type hint, and how to say so in words."""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from uniattn_pl.config.paths import expand
from uniattn_pl.errors import did_you_mean
from uniattn_pl.options import LARGEST

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
}
# YAML 1.1's words for true and false are text where text is expected, and these where one of the two is
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


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
    if hint is bool and isinstance(value, bool | str) and str(value).lower() in TRUTH:
        return TRUTH[str(value).lower()]
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
    if isinstance(value, int | float) and not isinstance(value, bool):
        return show_number(value)
    return "nothing" if value is None else repr(value)


def fit_to_type(value: Any, text: str | None, hint: Any, field: dataclasses.Field[Any]) -> tuple[Any, str | None]:
    """Return the converted value and, if it is unusable, what is wrong with it (type, `allowed`, bounds or path)."""
    try:
        value = coerce(value, text, hint)
    except Mismatch:
        return value, f"expected {describe(hint)}, got {show(value)}."
    allowed = field.metadata.get("allowed") or ()
    if allowed and value is not None and value not in allowed:
        near = did_you_mean(str(value), map(str, allowed))
        return value, f"must be one of {', '.join(map(str, allowed))}; got {show(value)}.{near}"
    for number in value if isinstance(value, list | tuple) else [value]:
        problem = _out_of_bounds(number, field)
        if problem:
            return value, problem
    return expand(value) if field.metadata.get("path") else (value, None)


def _out_of_bounds(number: Any, field: dataclasses.Field[Any]) -> str | None:
    if not isinstance(number, int | float) or isinstance(number, bool):
        return None
    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    if maximum is None and isinstance(number, int):
        maximum = LARGEST
    if minimum is not None and number < minimum:
        return f"must be at least {minimum:g}, got {show_number(number)}."
    if maximum is not None and number > maximum:
        return f"must be at most {maximum}, got {show_number(number)}."
    if isinstance(number, int) and number < -LARGEST:
        return f"must be at least {-LARGEST}, got {show_number(number)}."
    return None


def show_number(number: float) -> str:
    """A number in a message; of a very long one its beginning."""
    text = str(number)
    return text if len(text) <= 40 else f"{text[:20]}... ({len(text)} digits)"
