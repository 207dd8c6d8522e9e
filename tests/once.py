"""Configs and shapes that are loaded once for all tests of a module: most of what a dry run does is load them."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

import uniattn_pl


def load_once(patch: pytest.MonkeyPatch) -> None:
    """Remember every config that a sweep loads for its points, and the shape of every model."""
    from uniattn_pl.modeling.loading import pretrained
    from uniattn_pl.sweeps import points
    from uniattn_pl.training import experiment

    import_everything()
    patch.setattr(points, "load_config", _remembered(points.load_config))
    shape = cache(pretrained.load_shape)
    for module in (pretrained, experiment):
        patch.setattr(module, "load_shape", shape)


def import_everything() -> None:
    """Import the whole package: a module that is first imported while a name is patched keeps the stand-in for ever."""
    for module in pkgutil.walk_packages(uniattn_pl.__path__, "uniattn_pl."):
        if module.name.endswith("__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "vllm":  # what vLLM's own interpreter alone imports
                raise


def _remembered(load: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[tuple[object, ...], Any] = {}

    def remembered(files: Any, overrides: Any = ()) -> Any:
        key = (tuple(files), tuple(overrides))
        if key not in known:
            known[key] = load(files, overrides)
        return known[key]

    return remembered
