"""Sources of maps that are trained for their readers: which there are, what of them trains, how far they are off."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.families.inspection import MODEL_TYPE_PREFIX, PUBLICATIONS, attention_of, decoder_layers, decoder_of
from uniattn_pl.kernels.map_handles import ReplayedMap
from uniattn_pl.losses.map_divergence import MapInputs, map_divergence
from uniattn_pl.modeling.attention.operate import MODULES
from uniattn_pl.modeling.conversion.convert import unmodified_copy
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.roles import KEY, MAP, QUERY
from uniattn_pl.training.teacher_checks import check_separate_projections

Served = Mapping[int, Mapping[int, tuple[int, ...] | None]]
"""Source layer -> its readers, each with the source's head of each of its heads (None: of its index)."""


def served_layers(model: Any) -> Served:
    """The sources of maps of a model with a plan, and their readers."""
    plan: LayerPlan = decoder_of(model).layer_plan
    return {
        source: {row.index: row.heads_from for row in plan.readers(source) if row.traits.reads == MAP}
        for source in plan.sources(MAP)
    }


def trained_for_readers(model: Any) -> list[nn.Parameter]:
    """The parameters that make the queries and keys of the sources of maps, norms among them.

    Raises:
        UserError: as `check_separate_projections`.
    """
    check_separate_projections(model)
    attentions = [attention_of(decoder_layers(model)[source]) for source in served_layers(model)]
    modules = [getattr(attention, name, None) for attention in attentions for name in MODULES[QUERY] + MODULES[KEY]]
    return [parameter for module in modules if module is not None for parameter in module.parameters()]


def publishing(teacher: Any) -> nn.Module:
    """The teacher on the same weights, but with attentions that can leave what their maps are made of."""
    converted = teacher.config.model_type.startswith(MODEL_TYPE_PREFIX)
    made: Any = teacher if converted else unmodified_copy(teacher)
    replay_maps(made)
    return made


def replay_maps(model: Any) -> Callable[[], None]:
    """Have sources publish queries and keys whatever the model is set to; returns what undoes it.

    For a whole stage: gradient checkpointing runs a layer again in the backward pass, when it must do the same.
    """
    config = decoder_of(model).config
    former, config.reuse_mode = config.reuse_mode, "replay"
    return lambda: setattr(config, "reuse_mode", former)


@contextmanager
def watched_maps(model: Any, layers: Collection[int]) -> Iterator[Mapping[int, ReplayedMap]]:
    """Within, a forward leaves the queries and keys of these layers' maps in the mapping.

    Nothing is computed in the hooks: they run inside of what gradient checkpointing repeats without them.

    Args:
        model: with a plan, be it the unmodified one, and so with attentions that publish; under `replay_maps`.
        layers: that compute a map.
    """
    seen: dict[int, ReplayedMap] = {}
    if not layers:
        yield seen
        return
    attentions = [attention_of(decoder_layers(model)[index]) for index in layers]
    published = [attention.publishes for attention in attentions]
    handles = [attention.register_forward_hook(_keeping(seen), with_kwargs=True) for attention in attentions]
    for attention in attentions:
        attention.publishes |= {MAP}
    try:
        yield seen
    finally:
        for attention, former, handle in zip(attentions, published, handles, strict=True):
            attention.publishes = former
            handle.remove()


def _keeping(seen: dict[int, ReplayedMap]) -> Callable[..., None]:
    def keep(attention: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen[attention.layer_idx] = kwargs[PUBLICATIONS][attention.layer_idx].replayed

    return keep


def summed_source_divergence(
    served: Served,
    student: Mapping[int, ReplayedMap],
    teacher: Mapping[int, ReplayedMap],
    segments: Tensor,
    positions: Tensor,
) -> Tensor:
    """The divergences of sources' maps from those that their readers have in the teacher, summed over queries.

    Args:
        student, teacher: what `watched_maps` has left of the sources, and of the readers.
        segments: int64 [B, L], as `map_divergence` takes them.
        positions: indices [N] into the flattened [B * L] queries, of those that count.
    """
    counted = torch.zeros_like(segments, dtype=torch.bool)
    counted.view(-1)[positions] = True
    sums = []
    for source, readers in served.items():
        targets = [_map_inputs(teacher[reader], heads) for reader, heads in readers.items()]
        sums.append(map_divergence(_map_inputs(student[source]), targets, segments, counted))
    return torch.stack(sums).sum()


def _map_inputs(replayed: ReplayedMap, heads_from: tuple[int, ...] | None = None) -> MapInputs:
    arguments = replayed.arguments
    return MapInputs(
        replayed.query,
        replayed.key,
        scaling=arguments["scaling"],
        window=arguments.get("sliding_window"),
        softcap=arguments.get("softcap"),
        heads_from=heads_from,
    )
