"""Where a decoder layer's feed-forward writes into the stream."""

from __future__ import annotations

from typing import Any

from torch import nn

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import attention_of


def output_of_feed_forward(layer: Any) -> tuple[str, nn.Linear]:
    """W_down of a decoder layer [d, intermediate]: its name within the layer, and the module.

    Raises:
        UserError: the layer has none that is the only one of its kind, as among experts.
    """
    attention = {id(module) for module in attention_of(layer).modules()}
    size = attention_of(layer).config.hidden_size
    found = [
        (name, module)
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear) and id(module) not in attention and module.out_features == size
    ]
    if len(found) != 1:
        raise UserError(
            f"the feed-forward of {type(layer).__name__} has {len(found) or 'no'} projections to the hidden size of "
            f"{size} where one is expected; calibration.refine.feed_forward is for such."
        )
    return found[0]
