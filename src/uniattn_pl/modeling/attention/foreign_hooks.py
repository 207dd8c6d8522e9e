"""What other libraries hang on attentions: refused where layers that share tokens would keep different ones."""

from __future__ import annotations

from typing import Any

from uniattn_pl.errors import UserError

PRESSES = "kvpress"  # its presses are forward hooks that drop, layer by layer, entries of the cache


def refuse_presses(attention: Any) -> None:
    """Let no press of kvpress choose the tokens of a layer whose map or keys others read.

    A press scores each layer by the layer's own queries and keys; a reader would be left with values of other tokens
    than its source has keys of, and answer wrongly without a word.

    Raises:
        UserError: a press hangs on this layer.
    """
    for hook in attention._forward_hooks.values():
        owner = getattr(hook, "__self__", None)
        if owner is not None and type(owner).__module__.partition(".")[0] == PRESSES:
            raise UserError(
                f"{type(owner).__name__} of kvpress chooses tokens for each layer by itself, and other layers read "
                f"what layer {attention.layer_idx} attends to; take H2O (evaluation.h2o, `generate --h2o`), which "
                "gives up the same tokens in a source and its readers, or a plan without readers (llmdrop)."
            )
