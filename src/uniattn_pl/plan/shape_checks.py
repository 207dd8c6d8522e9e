"""What of a plan's rows does not fit a model's sizes, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uniattn_pl.plan.layer_row import LayerRow
from uniattn_pl.plan.roles import MAP, OTHER
from uniattn_pl.plan.shape import ModelShape


def attention_problems(rows: Sequence[LayerRow], shape: ModelShape) -> list[str]:
    """Layers that the plan gives an attention to lose, or none, where the model has it otherwise."""
    attending = shape.attention_layers
    without = [row.index for row in rows if row.index not in attending and row.role != OTHER]
    problems = []
    if without:
        roles = ", ".join(sorted({rows[index].role for index in without}))
        problems.append(
            f"layer {', '.join(map(str, without))} of the model ({shape.model_type}) cannot be '{roles}': no attention "
            f"is there; layers that have one: {', '.join(map(str, attending))}."
        )
    having = [row.index for row in rows if row.index in attending and row.role == OTHER]
    if having:
        problems.append(f"layer {', '.join(map(str, having))} of the model has an attention, which the plan denies.")
    return problems


def head_problems(row: LayerRow, shape: ModelShape) -> list[str]:
    """What does not fit this model about aligned heads."""
    heads, most = row.heads_from, shape.layers[row.index].heads.queries
    if heads is not None and (len(heads) != most or not all(0 <= head < most for head in heads)):
        return [f"layer {row.index} aligns its heads with {list(heads)}; the model has {most} heads, 0 to {most - 1}."]
    return []


def source_size_problems(row: LayerRow, shape: ModelShape) -> list[str]:
    """What does not fit about the heads of a layer and of its source; only the size of values may differ, for a map."""
    own, source = shape.layers[row.index].heads, shape.layers[row.source or 0].heads
    if own == source or (row.traits.reads == MAP and replace(own, value_size=source.value_size) == source):
        return []
    return [f"layer {row.index} has {own}, but its source, layer {row.source}, {source}; choose one of the same heads."]


def cross_problems(row: LayerRow, shape: ModelShape) -> list[str]:
    """What does not fit about the cross-attention of a layer that uses its source's cross-attention map."""
    if not row.cross_map:
        return []
    own, source = shape.layers[row.index].cross, shape.layers[row.source or 0].cross
    where = f"layer {row.index} is to use the map of the cross-attention of layer {row.source}"
    if shape.encoder is None:
        return [
            f"{where}; a {shape.model_type} model is a decoder alone, which has none (architecture.cross_attention)."
        ]
    if own is None or source is None:
        return [f"{where}; layer {row.index if own is None else row.source} has none."]
    if replace(own.heads, value_size=source.heads.value_size) != source.heads:
        return [f"{where}, which has {source.heads}, and it {own.heads}; choose a source of the same heads."]
    return []


def rank_problems(rows: Sequence[LayerRow], shape: ModelShape) -> list[str]:
    """Ranks that W_c cannot have, each once, however many layers have it."""
    ranks = {row.compensation.thin for row in rows if row.compensation is not None}
    return [
        f"the plan gives W_c rank {rank}; it must be from 1 to {shape.hidden_size}."
        for rank in sorted(rank for rank in ranks if rank is not None)
        if not 1 <= rank <= shape.hidden_size
    ]


def own_size_problems(row: LayerRow, shape: ModelShape) -> list[str]:
    """KV heads that do not divide those that the layer has, and windows that are none."""
    where, layer, problems = f"layer {row.index}", shape.layers[row.index], []
    if row.kv_heads is not None:
        groups = 1 if layer.heads.latent else layer.heads.groups  # a latent is one for all heads
        allowed = [number for number in range(1, groups) if groups % number == 0]
        if row.kv_heads not in allowed:
            some = f"{', '.join(map(str, allowed))}" if allowed else "none, as one cannot be fewer"
            problems.append(f"{where} has {groups} KV heads and cannot have {row.kv_heads}; allowed: {some}.")
    if row.window is not None and layer.window is not None:
        if row.window >= layer.window:
            problems.append(
                f"{where} sees the last {layer.window} tokens already; a window of {row.window} is no less."
            )
        elif row.sinks:
            problems.append(f"{where} slides already and has learned to do without first tokens: give it no sinks.")
    return problems
