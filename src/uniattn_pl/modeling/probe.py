"""Whether an untested family's attention is what the operated layers take it for, decided by running it."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.modeling.attention import operate
from uniattn_pl.modeling.copies import sharing_copy
from uniattn_pl.modeling.families import decoder_layers
from uniattn_pl.modeling.sharing import PREFIX, STATE_KEY, SharedState, publish_positions
from uniattn_pl.plan import LayerPlan, LayerRow

LENGTH = 8
RELATIVE_TOLERANCE = 0.05
PUBLISHES = {"reuse": frozenset({"map"}), "share": frozenset({"key_value"})}


@torch.no_grad()
def check_exact(model: PreTrainedModel, plan: LayerPlan) -> None:
    """Let every layer that reads from another read from itself: it must give what its stock attention gives.

    An attention that does more than project, normalise, rotate and attend (a gate, layers without rotation) does
    not. Weightless models are not probed.

    Raises:
        UserError: a layer's output differs; names the layers.
    """
    rows = [row for row in plan.rows if row.role in PUBLISHES]
    if model.device.type == "meta":
        return
    calls = _attention_calls(model, [row.index for row in rows])
    wrong = [row.index for row in rows if _reads_itself_wrongly(model, row, *calls[row.index])]
    if wrong:
        family, roles = model.config.model_type, sorted({plan.rows[i].role for i in wrong})
        raise UserError(
            f"model type '{family}' is not tested, and layers {', '.join(map(str, wrong))} compute something that "
            f"a plan would lose ({', '.join(roles)}): reading from themselves they do not give their own output. "
            "Choose layers or an architecture that leave them as they are."
        )


def _attention_calls(model: PreTrainedModel, layers: list[int]) -> dict[int, tuple[dict[str, Any], torch.Tensor]]:
    """Keyword arguments and output of the attention of `layers` in one forward over random tokens."""
    calls: dict[int, tuple[dict[str, Any], torch.Tensor]] = {}
    handles = []
    for index in layers:

        def record(_: Any, args: Any, kwargs: dict[str, Any], output: Any, index: int = index) -> None:
            calls[index] = (kwargs, output[0])

        attention = decoder_layers(model)[index].self_attn
        handles.append(attention.register_forward_hook(record, with_kwargs=True))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, LENGTH), generator=generator).to(model.device)
    training = model.training
    model.eval().get_decoder()(input_ids=ids, use_cache=False)
    model.train(training)
    for handle in handles:
        handle.remove()
    return calls


def _reads_itself_wrongly(
    model: PreTrainedModel, row: LayerRow, kwargs: dict[str, Any], expected: torch.Tensor
) -> bool:
    stock = decoder_layers(model)[row.index].self_attn
    state = SharedState()
    source, reader = _publishing_copy(stock), _publishing_copy(stock)
    source.publishes, reader.publishes = PUBLISHES[row.role], frozenset()
    if row.role == "share":
        publish_positions(source, (), {**kwargs, STATE_KEY: state})
    source(**kwargs, **{STATE_KEY: state})
    state[row.source or 0] = state[row.index]
    operate(reader, replace(row, compensated=False))
    found, _ = reader(**kwargs, **{STATE_KEY: state})
    return bool((found - expected).norm() > RELATIVE_TOLERANCE * expected.norm())


def _publishing_copy(attention: Any) -> Any:
    """A copy of an attention on the same weights, with a config of its own whose kernel publishes."""
    twin = sharing_copy(attention)
    twin.config = copy.copy(attention.config)
    twin.config._attn_implementation = PREFIX + str(twin.config._attn_implementation).removeprefix(PREFIX)
    twin.config.reuse_mode = "replay"
    return twin
