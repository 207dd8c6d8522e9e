"""Whether an untested family's attention is what the operated layers take it for, decided by running it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import PUBLICATIONS, decoder_layers, stock_model_type
from uniattn_pl.kernels.stock import PREFIX
from uniattn_pl.modeling.attention.operate import operate
from uniattn_pl.modeling.attention.published import Publications
from uniattn_pl.modeling.attention.publishing import publish_positions
from uniattn_pl.modeling.conversion.aliased_copy import aliased_copy
from uniattn_pl.plan import LayerPlan, LayerRow
from uniattn_pl.plan.roles import KEY_VALUE

LENGTH = 8
# Reading from itself, a layer calls the same kernel on the same numbers: what differs is no rounding.
RELATIVE_TOLERANCE = {torch.float32: 1e-4}
RELATIVE_TOLERANCE_HALF = 1e-3
# Times the layer's own input: what an attention limits (clipped values) shows only where it is large.
INPUT_SCALES = (1.0, 8.0)


@torch.no_grad()
def check_exact(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Let every layer that reads from another read from itself: it must give what its stock attention gives.

    An attention that does more than project, normalise, rotate and attend (a gate, layers without rotation, clipped
    values, a scale of late positions) does not. Probed at the first and at the last positions the model has, with
    its own inputs and with enlarged ones. Sources of keys are probed too: readers rotate as they do. Weightless models
    are not probed, nor layers that were converted before.

    Raises:
        UserError: a layer's output differs (names the layers), or it cannot be run as its role has it.
    """
    if model.device.type == "meta":
        return
    former: LayerPlan | None = getattr(model, "layer_plan", None)
    stock = [row.index for row in plan.rows if former is None or not former.rows[row.index].operated]
    roles = {row.index: row.role for row in plan.rows if row.traits.reads is not None}
    roles |= {row.source: row.role for row in plan.rows if row.source is not None and row.traits.reads == KEY_VALUE}
    probed = [index for index in stock if index in roles]
    training = model.training
    model.eval()
    try:
        wrong = _wrong_layers(model, probed, roles)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"model type '{stock_model_type(model.config)}' is not tested, and its attention cannot be run as a plan "
            f"has it ({type(error).__name__}: {error}). Choose an architecture that leaves its layers as they are."
        ) from error
    finally:
        model.train(training)
    if wrong:
        lost = ", ".join(sorted({roles[index] for index in wrong}))
        raise UserError(
            f"model type '{stock_model_type(model.config)}' is not tested, and layers {', '.join(map(str, wrong))} "
            f"compute something that a plan would lose ({lost}): reading from themselves they do not give their own "
            "output. Choose layers or an architecture that leave them as they are."
        )


def _wrong_layers(model: PreTrainedModel, probed: list[int], roles: dict[int, str]) -> list[int]:
    """Of the layers `probed`, those that give another output, at the model's first positions or at its last."""
    last = max(0, (getattr(model.config, "max_position_embeddings", None) or 0) - LENGTH)
    calls = [_attention_calls(model, probed, first) for first in sorted({0, last})]
    return [
        index
        for index in probed
        if any(_reads_itself_wrongly(model, index, roles[index], at_positions[index]) for at_positions in calls)
    ]


def _attention_calls(model: PreTrainedModel, layers: list[int], first: int) -> dict[int, dict[str, Any]]:
    """Keyword arguments of the attention of `layers` in one forward over random tokens at positions from `first`."""
    calls: dict[int, dict[str, Any]] = {}
    handles = []
    for index in layers:

        def record(_: Any, args: Any, kwargs: dict[str, Any], output: Any, index: int = index) -> None:
            calls[index] = {name: value for name, value in kwargs.items() if name != PUBLICATIONS}

        attention = decoder_layers(model)[index].self_attn
        handles.append(attention.register_forward_hook(record, with_kwargs=True))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, LENGTH), generator=generator).to(model.device)
    positions = torch.arange(first, first + LENGTH, device=model.device)[None]
    try:
        model.get_decoder()(input_ids=ids, position_ids=positions, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _reads_itself_wrongly(model: PreTrainedModel, index: int, role: str, kwargs: dict[str, Any]) -> bool:
    """Whether a layer gives another output where it reads its own publication; on inputs of every scale."""
    stock, hidden = decoder_layers(model)[index].self_attn, kwargs["hidden_states"]
    return any(_differs(stock, index, role, {**kwargs, "hidden_states": hidden * scale}) for scale in INPUT_SCALES)


def _differs(stock: Any, index: int, role: str, kwargs: dict[str, Any]) -> bool:
    expected, _ = stock(**kwargs)
    # Named as if it read from the layer below (or above the bottom one), where its own publication is put.
    elsewhere = index - 1 if index else 1
    row = LayerRow(index, role, elsewhere)
    publications = Publications()
    source, reader = publishing_copy(stock), publishing_copy(stock)
    source.publishes, reader.publishes = frozenset({row.traits.reads}), frozenset()
    if row.traits.reads == KEY_VALUE:
        publish_positions(source, (), {**kwargs, PUBLICATIONS: publications})
    source(**kwargs, **{PUBLICATIONS: publications})
    publications[elsewhere] = publications[index]
    operate(reader, row)
    output, _ = reader(**kwargs, **{PUBLICATIONS: publications})
    tolerance = RELATIVE_TOLERANCE.get(expected.dtype, RELATIVE_TOLERANCE_HALF)
    difference = (output.float() - expected.float()).norm()
    return bool(difference > tolerance * expected.float().norm())


def publishing_copy(attention: Any) -> Any:
    """A copy of an attention on the same weights, with a config of its own whose kernel publishes."""
    twin = aliased_copy(attention)
    twin.config = copy.copy(attention.config)
    twin.config._attn_implementation = PREFIX + str(twin.config._attn_implementation).removeprefix(PREFIX)
    twin.config.reuse_mode = "replay"
    twin.key_root = twin.last_map_reader = twin.layer_idx
    return twin
