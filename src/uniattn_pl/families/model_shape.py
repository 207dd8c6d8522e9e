"""How large a model is, by what a plan can take away: parameters per layer, windows, rows of a fused projection."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from uniattn_pl.families.inspection import (
    KNOWN_PARTS,
    PROJECTIONS,
    Anatomy,
    anatomy_of_model,
    decoder_layers,
    stock_model_type,
    weightless,
)
from uniattn_pl.plan import LayerShape, ModelShape


def shape_of(config: PreTrainedConfig) -> ModelShape:
    """Count a model's parameters by role, on a weightless stock model of that config, itself converted or not.

    Raises:
        UserError: as `anatomy_of`.
    """
    model = weightless(config)
    anatomy = anatomy_of_model(model)
    windows = windows_of(config)
    layers = tuple(
        _layer_shape(layer, anatomy, window) for layer, window in zip(decoder_layers(model), windows, strict=True)
    )
    in_layers = _count(decoder_layers(model).parameters())
    return ModelShape(
        model_type=stock_model_type(config),
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=decoder_layers(model)[0].self_attn.head_dim,
        vocab_size=config.vocab_size,
        embedding=_count(model.parameters()) - in_layers,
        layers=layers,
    )


def windows_of(config: PreTrainedConfig) -> list[int | None]:
    """Per layer, the sliding window in tokens, or None: as transformers' own cache decides it."""
    from transformers import DynamicCache

    return [getattr(layer, "sliding_window", None) for layer in DynamicCache(config=config).layers]


def _layer_shape(layer: Any, anatomy: Anatomy, window: int | None) -> LayerShape:
    attention = layer.self_attn
    sizes = {part: _count(attention.get_submodule(part).parameters()) for part in _parts(attention)}
    if anatomy.fused:
        sizes |= {part: rows.numel for part, rows in fused_rows(attention).items()}
    attention_norms = sum(_count(getattr(layer, name).parameters()) for name in anatomy.attention_norms)
    matrices = [p.numel() for name, p in layer.named_parameters() if p.dim() == 2 and not name.startswith("self_attn.")]
    attributed = _count(attention.parameters()) + attention_norms + sum(matrices)
    return LayerShape(
        query=sizes["q_proj"],
        key=sizes["k_proj"],
        value=sizes["v_proj"],
        output=sizes["o_proj"],
        query_norm=sizes.get("q_norm", 0),
        key_norm=sizes.get("k_norm", 0),
        attention_norms=attention_norms,
        feed_forward=sum(matrices),
        other=_count(layer.parameters()) - attributed,
        window=window,
    )


def _parts(attention: nn.Module) -> list[str]:
    return [name for name, _ in attention.named_children() if name in KNOWN_PARTS]


@dataclass(frozen=True)
class FusedRows:
    """The rows of a fused projection that are its q, k or v: `start` to `stop`, holding `numel` parameters."""

    start: int
    stop: int
    numel: int


def fused_rows(attention: Any) -> dict[str, FusedRows]:
    """Where q_proj, k_proj and v_proj lie in `qkv_proj` [(H + 2 Hkv) * D, d]."""
    fused, head_dim = attention.qkv_proj, attention.head_dim
    heads = attention.config.num_attention_heads * head_dim
    kv_heads = attention.config.num_key_value_heads * head_dim
    per_row = _count(fused.parameters()) // fused.out_features
    bounds = (0, heads, heads + kv_heads, heads + 2 * kv_heads)
    return {
        name: FusedRows(start, stop, per_row * (stop - start))
        for name, start, stop in zip(PROJECTIONS[:3], bounds[:-1], bounds[1:], strict=True)
    }


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
