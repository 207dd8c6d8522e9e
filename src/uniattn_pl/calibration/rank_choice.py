"""How much of what W_c repairs a low rank keeps, and the least rank that keeps enough."""

from __future__ import annotations

import torch

from uniattn_pl.calibration.solvers import Fit
from uniattn_pl.modeling.attention.compensation_layer import repaired_outputs

RANK_KEEPS = 0.95


class RepairedByRank:
    """The squared error on the tokens fitted that the W_c of a fit repairs, cut to every rank (`set_compensation`).

    With R = U diag(s) U^T of `repaired_outputs`, rank r repairs s_1 + ... + s_r and the full W_c the sum of all: the
    spectrum tells it without another fit. With a bias it is the error that the bias leaves.
    """

    def __init__(self, fit: Fit) -> None:
        self.added, self.read = fit.w_c.shape
        spectrum = torch.linalg.eigvalsh(repaired_outputs(fit.w_c, fit.gram)).flip(0).clamp(min=0)
        self.repaired = spectrum.cumsum(0)  # [out]

    def least_rank(self, share: float) -> int | None:
        """The least rank that keeps `share` of the repaired error; None: two thin matrices would hold no fewer
        weights than W_c in full."""
        rank = 1 + int((self.repaired < share * self.repaired[-1]).sum())
        return rank if rank * (self.read + self.added) < self.read * self.added else None

    def kept(self, rank: int | None) -> float:
        """The share of the repaired error that this rank keeps; None: W_c in full."""
        total = float(self.repaired[-1])
        return 1.0 if rank is None or not total else float(self.repaired[min(rank, self.added) - 1]) / total
