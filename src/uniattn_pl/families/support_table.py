"""What is known of every tested family, read off its default model by the code that converts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig

from uniattn_pl.families.anatomy import anatomy_of, weightless
from uniattn_pl.families.inspection import FAMILIES, attention_of, decoder_layers
from uniattn_pl.families.model_shape import windows_of

# A default that is another family: Granite 4 with Mamba layers.
OPTIONS: dict[str, dict[str, Any]] = {"granitemoehybrid": {"layer_types": ["attention"] * 32}}


@dataclass(frozen=True)
class FamilySupport:
    """One row of `list families`.

    Args:
        kernels: values of model.attn_implementation that it has.
        projections: separate, or the name of the fused one.
        query_norm: what its norms of queries and keys run over, or "-".
        norms: the norms that go with a dropped attention.
        windows: layers with a sliding window, of all, in its default model.
    """

    model_type: str
    models: str
    kernels: tuple[str, ...]
    projections: str
    query_norm: str
    norms: tuple[str, ...]
    windows: str


def support() -> list[FamilySupport]:
    """Inspect every tested family."""
    return [_inspect(model_type, models) for model_type, models in FAMILIES.items()]


def _inspect(model_type: str, models: str) -> FamilySupport:
    config = AutoConfig.for_model(model_type, **OPTIONS.get(model_type, {}))
    model = weightless(config)
    anatomy = anatomy_of(config)
    windows = windows_of(config)
    local = sum(window is not None for window in windows)
    return FamilySupport(
        model_type=model_type,
        models=models,
        kernels=("eager", "sdpa") if model._supports_sdpa else ("eager",),
        projections="fused" if anatomy.fused else "separate",
        query_norm=_query_norm(attention_of(decoder_layers(model)[0])),
        norms=anatomy.attention_norms,
        windows=f"{local} of {len(windows)}" if local else "-",
    )


def _query_norm(attention: Any) -> str:
    norm = getattr(attention, "q_norm", None)
    if norm is None:
        return "-"
    return "each head" if norm.weight.shape[-1] == attention.head_dim else "all heads"
