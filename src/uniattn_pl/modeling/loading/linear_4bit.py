"""bitsandbytes' matrix in 4 bits as it has to be under low-rank updates; imported where it is used."""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn.modules import Linear4bit
from torch import nn


class FrozenLinear4bit(Linear4bit):
    """A matrix that never trains, whose checkpoint is the file it was read from.

    On CPUs with bfloat16 bitsandbytes packs weights anew in the first forward for inference, through which no gradient
    goes: held-out loss that is measured between two steps would end the training of what lies below.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.support_avx512bf16_for_cpu = False

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        nn.Module._save_to_state_dict(self, destination, prefix, keep_vars)  # without the scales of its blocks
