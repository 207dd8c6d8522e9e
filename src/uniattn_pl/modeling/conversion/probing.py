"""What the probes of a family's attentions have in common: their inputs, copies that publish, and what is equal."""

from __future__ import annotations

import copy
from typing import Any

import torch

from uniattn_pl.families.inspection import PUBLICATIONS
from uniattn_pl.kernels.stock import publish
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy

LENGTH = 8
# Reading from itself, a layer calls the same kernel on the same numbers: what differs is no rounding.
RELATIVE_TOLERANCE = {torch.float32: 1e-4}
RELATIVE_TOLERANCE_HALF = 1e-3
# Times the layer's own input: what an attention limits (clipped values) shows only where it is large.
INPUT_SCALES = (1.0, 8.0)


def tolerance(dtype: torch.dtype) -> float:
    """The relative difference at which two ways to compute the same thing on the same numbers are not the same."""
    return RELATIVE_TOLERANCE.get(dtype, RELATIVE_TOLERANCE_HALF)


def differ(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results are not the same."""
    difference = (found.float() - expected.float()).norm()
    return not bool(difference <= tolerance(expected.dtype) * expected.float().norm())  # NaN differs


def by_keyword(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an attention was called with, its hidden states by name, too, and nothing published."""
    return unpublished({"hidden_states": args[0], **kwargs} if args else kwargs)


def unpublished(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments without what layers publish for each other."""
    return {name: value for name, value in kwargs.items() if name != PUBLICATIONS}


def publishing_copy(attention: Any, reuse_mode: str = "replay") -> Any:
    """A copy of an attention on the same weights, with a config of its own whose kernel publishes."""
    twin = aliased_copy(attention)
    twin.config = copy.copy(attention.config)
    publish(twin.config)
    twin.config.reuse_mode = reuse_mode
    twin.settings = twin.config
    twin.key_root = twin.last_map_reader = twin.layer_idx
    return twin
