"""`${key}` and `${oc.env:VARIABLE,default}`: the only two things a config value can refer to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from uniattn_pl.errors import did_you_mean

ENVIRONMENT = "oc.env"


def refers(value: Any) -> bool:
    """Whether a value contains an interpolation (or an escaped one)."""
    if isinstance(value, str):
        return "${" in value
    if isinstance(value, Mapping):
        return any(refers(v) for v in value.values())
    return isinstance(value, list) and any(refers(v) for v in value)


def escape(value: Any) -> Any:
    """Protect every `${` in a resolved value, so that reading it again gives the same text."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: match.group(1) * 2 + r"\${", value)
    if isinstance(value, Mapping):
        return {key: escape(item) for key, item in value.items()}
    return [escape(item) for item in value] if isinstance(value, list) else value


def syntax_problem(value: Any) -> str | None:
    """Return what is wrong with the interpolations written in a value, or None."""
    from omegaconf.grammar_parser import parse

    for text in _texts(value):
        try:
            tree = parse(text)
        except OmegaConfBaseException:
            return f"'{text}' is not a complete interpolation; write ${{key}} or ${{{ENVIRONMENT}:VARIABLE,default}}."
        for name in _resolvers(tree):
            if name != ENVIRONMENT:
                return (
                    f"'{text}' calls '{name}'; a value may use ${{key}} and ${{{ENVIRONMENT}:VARIABLE,default}} only."
                )
    return None


def resolve(tree: Any, path: tuple[str, ...], keys: list[str]) -> tuple[Any, str | None]:
    """Return the resolved value at `path` of an OmegaConf `tree` and None, or None and what keeps it from resolving.

    Args:
        keys: every dotted key there is, for the nearest match.
    """
    try:
        node = tree
        for key in path[:-1]:
            node = node[key]
        value = node[path[-1]]
        return (OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value), None
    except RecursionError:
        return None, "the interpolation refers to itself."
    except (OmegaConfBaseException, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0].strip()
        missing = re.search(r"Interpolation key '([^']*)' not found", reason)
        if missing:
            return None, f"${{{missing[1]}}} is not a key of this config.{did_you_mean(missing[1], keys)}"
        variable = re.search(r"[Ee]nvironment variable '([^']*)' not found", reason)
        if variable:
            name = variable[1]
            return (
                None,
                f"the environment variable {name} is not set; set it or write ${{{ENVIRONMENT}:{name},default}}.",
            )
        return None, f"cannot be resolved: {reason}."


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if "${" in value:
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _resolvers(tree: Any) -> Iterator[str]:
    """Yield the name of every resolver called in a parsed interpolation, nested ones included."""
    if type(tree).__name__ == "InterpolationResolverContext":
        yield tree.resolverName().getText()
    for child in getattr(tree, "children", None) or ():
        yield from _resolvers(child)
