"""How badly the best linear map of an attention's input can miss what is behind it (NBL, arXiv 2505.21077)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch, WatchPoint, capture, layer_inputs, residual_multiplier
from uniattn_pl.families.anatomy import anatomy_of
from uniattn_pl.families.inspection import attention_of, decoder_layers
from uniattn_pl.families.passed_layers import hidden_of
from uniattn_pl.search.importance import contribution

RIDGE = 1e-6
"""Of both covariances, relative to their mean diagonal: streams have directions that hardly vary."""


@torch.no_grad()
def linear_bounds(model: PreTrainedModel, batches: Sequence[Batch]) -> list[float]:
    """By layer, NBL's bound on the normalised squared error of the best affine estimate of Y from X.

        NMSE(Y, W X + b) <= (d - r) + sum over i of (1 - rho_i^2) = d - sum of rho_i^2

    with the r = d canonical correlations rho_i of X [d], what enters the attention (behind its norm, which is what W_c
    reads), and Y [d], the stream behind the attention: its output plus the residual, as in NBL. By traces, without a
    singular value decomposition: sum of rho_i^2 = tr(Cxx^-1 Cxy Cyy^-1 Cyx).

    Args:
        model: stock or converted.
        batches: input_ids and attention_mask [B, L]; with few tokens for d features every correlation is near 1.
    """
    anatomy = anatomy_of(model.config)
    inputs = [layer_inputs(model, batch) for batch in batches]
    masks = [batch["attention_mask"].bool().to(model.device) for batch in batches]
    streams = [given.hidden for given in inputs]
    bounds = []
    for index, layer in enumerate(decoder_layers(model)):
        moments = _Moments()
        for batch, given in enumerate(inputs):
            seen: dict[str, torch.Tensor] = {}
            before = streams[batch]
            if attention_of(layer) is None:
                streams[batch] = hidden_of(layer(before, **given.arguments[index]))
                continue
            with (
                capture(WatchPoint(attention_of(layer)), seen, "x"),
                capture(contribution(layer, anatomy), seen, "added"),
            ):
                streams[batch] = hidden_of(layer(before, **given.arguments[index]))
            behind = before.float() + seen["added"].float() * residual_multiplier(layer)
            moments.add(seen["x"].float()[masks[batch]], behind[masks[batch]])
        bounds.append(moments.bound() if moments.count else math.inf)
    return bounds


class _Moments:
    """First and second moments of X [T, d] and Y [T, d] together."""

    def __init__(self) -> None:
        self.count, self.features = 0, 0
        self.total = self.gram = torch.zeros(0)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        both = torch.cat([x, y], dim=1)
        total, gram = both.double().sum(0), (both.T @ both).double()
        self.total, self.gram = (total, gram) if self.count == 0 else (self.total + total, self.gram + gram)
        self.count, self.features = self.count + len(both), x.shape[1]

    def bound(self) -> float:
        """The bound, as d - tr(Cxx^-1 Cxy Cyy^-1 Cyx)."""
        mean = self.total / self.count
        covariance = self.gram / self.count - torch.outer(mean, mean)
        d = self.features
        xx, yy, xy = covariance[:d, :d], covariance[d:, d:], covariance[:d, d:]
        for block in (xx, yy):
            block.diagonal().add_(max(RIDGE * float(block.diagonal().mean()), torch.finfo(torch.float64).tiny))
        of_x = torch.linalg.solve(xx, xy)  # [d, d]
        of_y = torch.linalg.solve(yy, xy.T)  # [d, d]
        return d - float((of_x * of_y.T).sum())
