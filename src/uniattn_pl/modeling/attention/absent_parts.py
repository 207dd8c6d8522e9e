"""What stands in an attention, whose family's forward goes on to call it, for a part that its role gave up."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uniattn_pl.families.attention_parts import RowSpan, row_spans, serves


class AbsentProjection(nn.Module):
    """Zeros [B, L, out] in place of a projection; what is made of them is never looked at."""

    def __init__(self, out_features: int) -> None:
        super().__init__()
        self.out_features = out_features

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # memory of its own: some families clip in place, or ask for a view
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.out_features)


class KeptRows(nn.Module):
    """The rows of a projection that its layer still needs, and zeros for the others: [B, L, in] to [B, L, out].

    Its weight [kept, in] has the name that the whole one had.
    """

    def __init__(self, linear: nn.Linear, spans: list[RowSpan]) -> None:
        super().__init__()
        self.out_features, self.spans = linear.out_features, spans
        rows = torch.cat([span.rows(linear.out_features) for span in spans])
        for name, parameter in linear.named_parameters():
            kept = parameter.detach()[rows.to(parameter.device)].clone()
            self.register_parameter(name, nn.Parameter(kept, requires_grad=parameter.requires_grad))
        if linear.bias is None:
            self.register_parameter("bias", None)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        kept = nn.functional.linear(hidden_states, self.weight, self.bias)  # type: ignore[arg-type]
        whole, start = kept.new_zeros(*kept.shape[:-1], self.out_features), 0
        for span in self.spans:
            width = span.groups * (span.stop - span.start)
            of_span = kept[..., start : start + width].unflatten(-1, (span.groups, -1))  # [B, L, groups, rows]
            whole.unflatten(-1, (span.groups, -1))[..., span.start : span.stop].copy_(of_span)
            start += width
        return whole


def give_up_parts(attention: Any, kept: frozenset[str]) -> None:
    """Take out of a stock attention, in place, what serves none of the `kept` projections."""
    spans = row_spans(attention)
    for name, module in list(attention.named_children()):
        if name in spans:
            needed = [span for span in spans[name] if span.serves & kept]
            if len(needed) < len(spans[name]):
                setattr(attention, name, KeptRows(module, needed) if needed else AbsentProjection(module.out_features))
        elif name != "w_c" and not serves(name) & kept:
            linear = isinstance(module, nn.Linear)
            setattr(attention, name, AbsentProjection(module.out_features) if linear else nn.Identity())
    for name, _ in list(attention.named_parameters(recurse=False)):
        if not serves(name) & kept:
            attention.register_parameter(name, None)
