"""Names of a package that are imported from where they live when they are first used, so that the package is light."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from uniattn_pl.extras import missing_extra


def lazy_exports(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that exports names of modules without importing them.

    Args:
        package: its `__name__`.
        homes: name -> the module that it is imported from.

    Raises:
        AttributeError: (by `__getattr__`) there is no such name.
        MissingExtraError: (by `__getattr__`) what it needs is an extra that is not installed.
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module '{package}' has no attribute '{name}'")
        try:
            found = getattr(import_module(homes[name]), name)
        except ModuleNotFoundError as error:
            raise missing_extra(error, f"{package}.{name}") or error from error
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return find, names
