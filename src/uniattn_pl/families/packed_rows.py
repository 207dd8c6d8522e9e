"""Whether a family keeps the rows of a packed sequence apart, seen in what it asks transformers for a mask with."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from typing import Any

import torch
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import attention_of, decoder_layers, decoder_of
from uniattn_pl.families.recurrent_states import layers_with_states

CHUNKED = "chunked_attention"  # Llama-4's


def check_rows_stay_apart(model: PreTrainedModel) -> None:
    """Check that a row of a pack would see no other, on a model without weights.

    transformers finds the rows by positions that begin anew, where a decoder makes its masks of them; Granite 4, which
    rotates nothing, does not. A layer without attention would carry its state from row to row, and chunks of Llama-4
    would end elsewhere in a row than where it stands alone.

    Raises:
        UserError: it would, or it would not see what it sees alone.
    """
    without = {index for index, layer in enumerate(decoder_layers(model)) if attention_of(layer) is None}
    recurrent = sorted(without | set(layers_with_states(model.config)))
    what = "see each other"
    if recurrent:
        why = (
            f"layers {', '.join(map(str, recurrent))} are not attention alone, and carry what they saw from row to row"
        )
    elif CHUNKED in (getattr(model.config.get_text_config(), "layer_types", None) or ()):
        what, why = "see less than by themselves", "its chunks are counted from the beginning of a pack"
    elif not _masks_by_position(model):
        why = "its masks do not look at positions, by which rows are told apart"
    else:
        return
    raise UserError(
        f"data.packing is true, but in a model of type '{model.config.model_type}' packed rows would {what}: "
        f"{why}. Set it to false."
    )


class _Asked(Exception):
    """Ends a forward as soon as it asks for a mask."""


def _masks_by_position(model: PreTrainedModel) -> bool:
    """Whether the decoder gives positions to the function that makes its mask."""
    decoder = decoder_of(model)
    module = sys.modules[type(decoder).__module__]
    asked: list[Any] = []

    def record(*_: Any, position_ids: Any = None, **__: Any) -> None:
        asked.append(position_ids)
        raise _Asked

    with ExitStack() as undo:
        for name in [name for name in vars(module) if name.startswith("create_") and name.endswith("_mask")]:
            undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, record)
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        with suppress(_Asked):
            decoder(input_ids=ids, position_ids=torch.arange(2, device=model.device)[None], use_cache=False)
    return bool(asked) and asked[0] is not None
