"""W_c as a module: a plain projection, or a product of two thin ones, with or without a bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from uniattn_pl.families.attention_parts import heads_of
from uniattn_pl.families.inspection import output_projection
from uniattn_pl.plan import Compensation

COMPENSATION = ".w_c."
"""In the names of its parameters."""


class LowRankLinear(nn.Module):
    """`up(down(x))`: a map [.., in] -> [.., out] of rank r with r * (in + out) weights."""

    def __init__(self, read: int, added: int, rank: int, *, bias: bool = False, **where: Any) -> None:
        super().__init__()
        self.down = nn.Linear(read, rank, bias=False, **where)
        self.up = nn.Linear(rank, added, bias=bias, **where)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Shapes: hidden_states [B, L, in], returns [B, L, out]."""
        return self.up(self.down(hidden_states))


def make_compensation(attention: Any, compensation: Compensation) -> nn.Module:
    """A W_c of the size and rank that the plan says, for a stock attention; its output is zero."""
    read, added = compensation.sizes(heads_of(attention), output_projection(attention).out_features)
    weight = output_projection(attention).weight
    # A quantised W_o holds integers; W_c is kept in the dtype the model computes in.
    dtype = weight.dtype if weight.is_floating_point() else attention.config.dtype
    options = {"bias": compensation.bias, "device": weight.device, "dtype": dtype}
    return _zero_map(read, added, compensation.thin, **options)


def with_rank(w_c: Any, rank: int | None) -> nn.Module:
    """A new W_c of the sizes of `w_c` and another rank (None: in full); its output is zero."""
    first, last = (w_c.down, w_c.up) if isinstance(w_c, LowRankLinear) else (w_c, w_c)
    options = {"bias": last.bias is not None, "device": last.weight.device, "dtype": last.weight.dtype}
    return _zero_map(first.in_features, last.out_features, rank, **options)


def _zero_map(read: int, added: int, rank: int | None, **options: Any) -> nn.Module:
    w_c = nn.Linear(read, added, **options) if rank is None else LowRankLinear(read, added, rank, **options)
    reset_compensation(w_c)
    return w_c


def reset_compensation(w_c: nn.Module) -> None:
    """Make its output zero; the inner factor of a low-rank one stays, so that it can train."""
    last: Any = w_c.up if isinstance(w_c, LowRankLinear) else w_c
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def repaired_outputs(solution: torch.Tensor, gram: torch.Tensor | None) -> torch.Tensor:
    """R [out, out] of a solution W [out, in]: a W_c whose output is projected by P repairs tr(P R) of squared error.

    Args:
        solution: W.
        gram: sum of x x^T [in, in] over the tokens fitted, as `Fit.gram`; None: inputs count as uncorrelated.
    """
    full = solution.double()
    outputs = full @ full.T if gram is None else full @ gram.to(full) @ full.T
    return (outputs + outputs.T) / 2


@torch.no_grad()
def set_compensation(
    w_c: Any,
    solution: torch.Tensor,
    gram: torch.Tensor | None,
    *,
    bias: torch.Tensor | None = None,
    mean: torch.Tensor | None = None,
) -> None:
    """Write a solution W [out, in] (and b [out]) into W_c; into a low-rank one what repairs most on the tokens fitted.

    Args:
        w_c: of `make_compensation`.
        solution: W.
        gram: as of `repaired_outputs`.
        bias: b, of a W_c that has one.
        mean: of x [in], where there is a bias.
    """
    full = solution.double()
    if not isinstance(w_c, LowRankLinear):
        w_c.weight.copy_(full)
        low_rank = full
    else:
        # Reduced-rank regression: the outputs W x are projected on their r principal directions U_r,
        #   W_r = U_r U_r^T W,  U from  W gram W^T = U diag(s) U^T.
        _, vectors = torch.linalg.eigh(repaired_outputs(full, gram))
        principal = vectors[:, -w_c.up.in_features :]  # [out, r]
        w_c.up.weight.copy_(principal)
        w_c.down.weight.copy_(principal.T @ full)
        low_rank = principal @ (principal.T @ full)
    if bias is not None:
        last = w_c.up if isinstance(w_c, LowRankLinear) else w_c
        # b_r = b + (W - W_r) mean(x): what the smaller map loses of the mean goes into the constant.
        last.bias.copy_(bias.double() + ((full - low_rank) @ mean.to(full) if mean is not None else 0))
