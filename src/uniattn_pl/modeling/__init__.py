"""From plans to transformers models: conversion, caches, loading and saving."""

from uniattn_pl.modeling.cache import kv_cache_bytes
from uniattn_pl.modeling.convert import apply_architecture, apply_plan, converted_copy
from uniattn_pl.modeling.families import shape_of

__all__ = ["apply_architecture", "apply_plan", "converted_copy", "kv_cache_bytes", "shape_of"]
