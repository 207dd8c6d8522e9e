"""The layers at the bottom that student and teacher have in common: computed once, by the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from uniattn_pl.families.inspection import decoder_layers, decoder_of
from uniattn_pl.plan import LayerPlan


def num_common_layers(student: Any, teacher: Any) -> int:
    """How many layers, from the bottom, give the teacher's hidden states in the student.

    They hold the very parameters of the teacher, as does what lies before them, and the plan neither changes them nor
    has them read from: so in stage 1 all below the first layer that the plan names, and none where everything trains.

    Args:
        student: the model that trains, sharing what is frozen of it (`teacher.share_frozen`).
        teacher: the model it was made of; another one computes otherwise with the same weights, if its config says so.
    """
    plan: LayerPlan | None = getattr(decoder_of(student), "layer_plan", None)
    if plan is None or _drops_out(student.config):
        return 0
    if _held_outside(decoder_of(student)) != _held_outside(decoder_of(teacher)):
        return 0
    layers = zip(plan.rows, decoder_layers(student), decoder_layers(teacher), strict=False)
    common = 0
    for row, own, others in layers:
        if row.operated or plan.read_from(row.index) or _held(own) != _held(others):
            break
        common += 1
    return common


@contextmanager
def continued_behind(teacher: Any, common: int, states: Callable[[], Tensor]) -> Iterator[None]:
    """Within, a forward of the teacher takes `states()` [B, L, d] for what its first `common` layers would give."""
    layers = decoder_layers(teacher)[:common]
    for index, layer in enumerate(layers):
        # the last one hands over; those below it hand on what they get
        last = index == common - 1
        layer.forward = (lambda *_, **__: states()) if last else (lambda hidden_states, **__: hidden_states)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _drops_out(config: PreTrainedConfig) -> bool:
    """Whether training, which a teacher is not in, is at random: `attention_dropout`, `resid_pdrop` and their like."""
    numbers = ((name, value) for name, value in config.to_dict().items() if isinstance(value, float))
    return any(value > 0 for name, value in numbers if "drop" in name)


def _held(module: nn.Module) -> set[int]:
    return {id(parameter) for parameter in module.parameters()}


def _held_outside(decoder: Any) -> set[int]:
    """What a decoder holds outside of its layers: tables of tokens and positions, norms before and behind them."""
    return _held(decoder) - _held(decoder.layers)
