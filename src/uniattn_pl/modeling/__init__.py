"""From plans to transformers models: conversion, caches, loading and saving.

Names are imported on first use, so that the catalogue of models can be read without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uniattn_pl.modeling.cache import kv_cache_bytes
    from uniattn_pl.modeling.convert import (
        apply_architecture,
        apply_plan,
        converted_copy,
        drop_attention,
        unmodified_copy,
    )
    from uniattn_pl.modeling.families import shape_of

_HOMES = {
    "apply_architecture": "convert",
    "apply_plan": "convert",
    "converted_copy": "convert",
    "unmodified_copy": "convert",
    "drop_attention": "convert",
    "kv_cache_bytes": "cache",
    "shape_of": "families",
}

__all__ = [
    "apply_architecture",
    "apply_plan",
    "converted_copy",
    "drop_attention",
    "kv_cache_bytes",
    "shape_of",
    "unmodified_copy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
