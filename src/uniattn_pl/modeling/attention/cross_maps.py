"""Cross-attention whose map other layers use, and that uses another's: a part of the role `reuse` beside an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from uniattn_pl.families.inspection import PUBLICATIONS
from uniattn_pl.modeling.attention.forwarded_readers import ForwardedReuse
from uniattn_pl.modeling.attention.published import Published

ATTENDS_TO_ENCODER = "attends_to_encoder"
"""What a cross-attention of a converted model is told by."""


def is_cross(attention: Any) -> bool:
    """Whether an attention of a converted decoder is one to an encoder's states."""
    return getattr(attention, ATTENDS_TO_ENCODER, False)


class CrossReuse(ForwardedReuse):
    """The map of the source's cross-attention times this layer's values of the encoder's states.

    What joins the stream is then linear in those values, and depends on nothing else of this layer: W_c, which repairs
    the error of both attentions, adds where this one joins, or behind the norm of its output (T5-Gemma).
    Cost: no W_q, W_k, QK^T or softmax; caches V of the source alone.

    """

    adds_behind_norm = False
    _waiting: torch.Tensor | None = None

    def published(self, kwargs: Mapping[str, Any]) -> Published:
        """What the source's cross-attention published in this forward."""
        of_cross = super().published(kwargs).cross
        assert of_cross is not None, "the plan has a cross-attention map published for this layer"
        return of_cross

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        output, *others = super().forward(hidden_states, *args, **kwargs)
        compensation = self.layer_row.compensation
        if compensation is None or compensation.output != "attention_output":
            return output, *others
        correction = kwargs[PUBLICATIONS].late.pop(self.layer_idx)
        if self.adds_behind_norm:
            self._waiting = correction
            return output, *others
        return output + correction, *others

    def add_behind(self, norm: Any) -> None:
        """Let W_c add behind the norm of this attention's output."""
        self.adds_behind_norm = True
        norm.register_forward_hook(self._add_waiting)

    def _add_waiting(self, norm: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        correction, self._waiting = self._waiting, None
        return output if correction is None else output + correction
