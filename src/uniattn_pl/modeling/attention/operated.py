"""What the attentions of all roles have in common: the projections that remain, and the compensation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from uniattn_pl.families.inspection import FUSED, PUBLICATIONS, attention_of, output_projection
from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.modeling.attention.published import Published
from uniattn_pl.plan import LayerRow


class OperatedAttention(nn.Module):
    """An attention that the plan changed; the family's own class is its other base (`operate.py`).

    Attributes:
        stock: the family's attention class.
        layer_row: of the plan.
        key_root: the layer whose keys it attends to in the end, `LayerPlan.root`.
        value_head_dim: Dv, which is head_dim, D, in most families.
        w_c: the compensation, or None.
        head_index: which head of the source serves each head; None: the one of its index.
    """

    stock: type
    layer_row: LayerRow
    layer_idx: int
    key_root: int
    head_dim: int
    value_head_dim: int
    w_c: nn.Module | None
    head_index: HeadIndex | None
    o_proj: nn.Linear

    def projection(self, part: str) -> nn.Linear:
        """`v_proj` or `q_proj`; what remains of a fused projection is that part alone."""
        return self.get_submodule(part if hasattr(self, part) else FUSED)  # type: ignore[return-value]

    def published(self, kwargs: Mapping[str, Any]) -> Published:
        """What this layer's source published in this forward."""
        publications: dict[int | None, Published] = kwargs[PUBLICATIONS]
        return publications[self.layer_row.source]

    def finish(
        self, heads: torch.Tensor, value: torch.Tensor | None, hidden_states: torch.Tensor, kwargs: Mapping[str, Any]
    ) -> torch.Tensor:
        """Apply W_o, and W_c where the plan reads and adds it (paper eq. 14, Table 8).

        x' = s V W_o + x + norm(x) W_c with `input: attention_input` and `output: attention_output`, the paper's choice.

        Shapes: heads [B, L, H * Dv], value [B, L, Hkv * Dv], hidden_states [B, L, d]: the pre-norm output norm(x), as
        in the official code; returns [B, L, d].
        """
        compensation = self.layer_row.compensation
        if self.w_c is None or compensation is None:
            return self.drop_out(output_projection(self)(heads))
        read = {"attention_input": hidden_states, "value": value, "heads": heads}[compensation.input]
        correction = self.w_c(read)
        if compensation.output == "heads":
            return self.drop_out(output_projection(self)(heads + correction))
        return self.add(output_projection(self)(heads), correction, kwargs)

    def add(self, output: torch.Tensor, correction: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Add a correction [B, L, d] to the attention's output, or leave it for the end of the layer."""
        if not self.adds_late:
            return self.drop_out(output + correction)
        kwargs[PUBLICATIONS].late[self.layer_idx] = correction
        return self.drop_out(output)

    @property
    def adds_late(self) -> bool:
        """Whether W_c's output waits: for the end of the layer, or for cross-attention, whose error it repairs, too."""
        compensation = self.layer_row.compensation
        return compensation is not None and (compensation.output != "attention_output" or self.layer_row.cross_map)

    def drop_out(self, output: torch.Tensor) -> torch.Tensor:
        """What the attention adds to the stream [B, L, d], with the dropout that some families give it in training
        (Starcoder2, Seed-OSS); others do that, if at all, in the layer, which is theirs."""
        probability = getattr(self, "residual_dropout", 0.0)
        return nn.functional.dropout(output, probability, self.training) if probability else output


def add_late_correction(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Forward hook of a decoder layer whose W_c adds to the layer's output [B, L, d], the first of several that a T5's
    gives (Table 8, row 2)."""
    correction = kwargs[PUBLICATIONS].late.pop(attention_of(layer).layer_idx, None)
    if correction is None:
        return output
    return (output[0] + correction, *output[1:]) if isinstance(output, tuple) else output + correction
