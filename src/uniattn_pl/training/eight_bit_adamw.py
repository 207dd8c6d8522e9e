"""AdamW whose states have 8 bits, by bitsandbytes; imported where it is chosen, as the package may be missing."""

from __future__ import annotations

from typing import Any

from bitsandbytes.optim.adamw import AdamW8bit

STATE_BITS = "optim_bits"


class EightBitAdamW(AdamW8bit):
    """bitsandbytes' AdamW, in which a group may say that its states have 32 bits.

    Rows of embeddings that are rarely seen have small states beside large ones in a block, which 8 bits would round
    away; transformers' Trainer keeps them in 32 for that reason. bitsandbytes' own way to say so is a manager that all
    optimizers of a process share, by position: a resumed stage would differ from one behind another.
    """

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        return {**super().get_config(gindex, pindex, group), STATE_BITS: group.get(STATE_BITS, 8)}
