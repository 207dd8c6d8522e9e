"""W_c as a module: a plain projection, or a product of two thin ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uniattn_pl.plan import LayerRow


class LowRankLinear(nn.Module):
    """`up(down(x))`: a map [.., in] -> [.., out] of rank r with r * (in + out) weights."""

    def __init__(self, read: int, added: int, rank: int, **where: Any) -> None:
        super().__init__()
        self.down = nn.Linear(read, rank, bias=False, **where)
        self.up = nn.Linear(rank, added, bias=False, **where)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Shapes: hidden_states [B, L, in], returns [B, L, out]."""
        return self.up(self.down(hidden_states))


def make_compensation(attention: Any, row: LayerRow) -> nn.Module:
    """A W_c of the size and rank that `row` says, for a stock attention; its output is zero."""
    config, o_proj = attention.config, attention.o_proj
    heads, hidden = o_proj.in_features, o_proj.out_features
    sizes = {"value": config.num_key_value_heads * attention.head_dim, "heads": heads}
    read, added = sizes.get(row.compensation_input, hidden), sizes.get(row.compensation_output, hidden)
    weight = o_proj.weight
    # A quantised W_o holds integers; W_c is kept in the dtype the model computes in.
    dtype = weight.dtype if weight.is_floating_point() else config.dtype
    where = {"device": weight.device, "dtype": dtype}
    rank = row.compensation_rank
    w_c = nn.Linear(read, added, bias=False, **where) if rank is None else LowRankLinear(read, added, rank, **where)
    reset_compensation(w_c)
    return w_c


def reset_compensation(w_c: nn.Module) -> None:
    """Make its output zero; the inner factor of a low-rank one stays, so that it can train."""
    last = w_c.up if isinstance(w_c, LowRankLinear) else w_c
    nn.init.zeros_(last.weight)  # type: ignore[arg-type]


@torch.no_grad()
def set_compensation(w_c: nn.Module, solution: torch.Tensor, gram: torch.Tensor | None) -> None:
    """Write a solution [out, in] into W_c; into a low-rank one what is nearest on the tokens `gram` sums over.

    With gram = sum x x^T [in, in], the rank-r map that loses least of the outputs W x projects them on their r
    principal directions (reduced-rank regression). Without it, inputs count as uncorrelated.
    """
    if not isinstance(w_c, LowRankLinear):
        w_c.weight.copy_(solution)  # type: ignore[operator, union-attr]
        return
    full = solution.double()
    outputs = full @ full.T if gram is None else full @ gram.to(full) @ full.T
    _, vectors = torch.linalg.eigh((outputs + outputs.T) / 2)
    principal = vectors[:, -w_c.up.in_features :]
    w_c.up.weight.copy_(principal)
    w_c.down.weight.copy_(principal.T @ full)
