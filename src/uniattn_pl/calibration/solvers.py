"""How W_c (and W_o) of one layer follow from what calibration saw there.

All fit the error that unification leaves after a layer's attention, `error = x'_original - x'_unified`
(paper eq. 13), by a linear map of the pre-norm input `x`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from uniattn_pl.config.schema import INITIALISERS
from uniattn_pl.resilience.ranks import sum_over_ranks, sum_rows_over_ranks

DEFAULT_RIDGE = 1e-2
RIDGES = (1e-4, 1e-3, DEFAULT_RIDGE, 1e-1, 1.0)


@dataclass(frozen=True)
class Sample:
    """One batch at one layer: x [B, L, d] and error [B, L, d]; heads [B, L, H*D] enters W_o (None if it has none);
    mask [B, L] is True on tokens that count."""

    x: torch.Tensor
    error: torch.Tensor
    heads: torch.Tensor | None
    mask: torch.Tensor


@dataclass(frozen=True)
class Fit:
    """The solution in `nn.Linear` layout: W_c [out, in], and what to add to W_o [d, H*D], if anything.

    `gram` [in, in], where it is known, is the sum of x x^T that a low-rank W_c is judged by.
    """

    w_c: torch.Tensor
    delta_o: torch.Tensor | None = None
    gram: torch.Tensor | None = None


class Solver(ABC):
    """Accumulates sums over batches, then solves once; memory does not depend on the number of samples."""

    @abstractmethod
    def update(self, sample: Sample) -> None:
        """Add one batch to the sums."""

    def observe(self, sample: Sample) -> None:
        """See one batch that choices are made by; solvers that choose nothing fit it like any other."""
        self.update(sample)

    @abstractmethod
    def share(self) -> None:
        """Add up the sums of all ranks, each of which has seen other batches."""

    @abstractmethod
    def solve(self) -> Fit | None:
        """The weights that fit all batches, or None to leave them as they are."""


class Zero(Solver):
    """W_c = 0 (paper Table 2, zero-init)."""

    def update(self, sample: Sample) -> None:
        pass

    def share(self) -> None:
        pass

    def solve(self) -> Fit | None:
        return None


class Theorem37(Solver):
    """W_c = pinv(E[x]) E[error] with the means taken over samples, per position (paper Theorem 3.7, eq. 15).

    As the official code: float32 SVD, absolute cut-off 1e-10. Unlike it, padding does not enter the means.
    With fewer positions than d the mean error is interpolated, which can harm single tokens.
    """

    cutoff = 1e-10

    def __init__(self) -> None:
        self.x = self.error = self.count = torch.zeros(0)

    def update(self, sample: Sample) -> None:
        mask = sample.mask[..., None]
        self.x = _grow_and_add(self.x, (sample.x * mask).float().sum(0))
        self.error = _grow_and_add(self.error, (sample.error * mask).float().sum(0))
        self.count = _grow_and_add(self.count, mask.float().sum(0))

    def share(self) -> None:
        self.x, self.error, self.count = map(sum_rows_over_ranks, (self.x, self.error, self.count))

    def solve(self) -> Fit | None:
        seen = self.count[:, 0] > 0
        x, error = (total[seen] / self.count[seen] for total in (self.x, self.error))
        u, s, vh = torch.linalg.svd(x, full_matrices=False)
        inverse = torch.where(s > self.cutoff, 1 / s, 0)
        return Fit((vh.T @ (inverse[:, None] * (u.T @ error))).T)


def _grow_and_add(total: torch.Tensor, addend: torch.Tensor) -> torch.Tensor:
    """Add [L, n] to a sum that may have fewer rows (batches differ in length)."""
    addend = addend.cpu()
    if total.numel() == 0:
        return addend
    long, short = (total, addend) if len(total) >= len(addend) else (addend, total)
    long[: len(short)] += short
    return long


class _Sums:
    """Gram matrix of the features, their products with the error, and the error's squares, over all tokens."""

    def __init__(self) -> None:
        self.gram = self.cross = torch.zeros(0)
        self.squares = 0.0

    def add(self, blocks: list[torch.Tensor], error: torch.Tensor) -> None:
        """Add features [T, n_i] and errors [T, out]."""
        # Products in float32, sums over batches in float64: thousands of batches do not lose digits.
        gram, cross = _gram(blocks).double(), torch.cat([block.T @ error for block in blocks]).double()
        self.gram, self.cross = (gram, cross) if self.empty else (self.gram + gram, self.cross + cross)
        self.squares += float(error.double().square().sum())

    def share(self) -> None:
        """Add up the sums of all ranks."""
        self.gram, self.cross = sum_over_ranks(self.gram), sum_over_ranks(self.cross)
        self.squares = float(sum_over_ranks(torch.tensor(self.squares, dtype=torch.float64)))

    def __add__(self, other: _Sums) -> _Sums:
        total = _Sums()
        total.gram, total.cross = self.gram + other.gram, self.cross + other.cross
        total.squares = self.squares + other.squares
        return total

    @property
    def empty(self) -> bool:
        return self.gram.numel() == 0

    def error_of(self, solution: torch.Tensor) -> float:
        """Squared error that the features times `solution` [n, out] leave on these tokens."""
        explained = 2 * (solution * self.cross).sum() - (solution * (self.gram @ solution)).sum()
        return self.squares - float(explained)


class LeastSquares(Solver):
    """Ridge regression of the error on x over all tokens; jointly with a correction of W_o where `joint`.

    Args:
        ridge: added to the diagonal, relative to the mean diagonal of each block (x, heads), so that W_o is
            pulled towards its present value and W_c towards zero; "auto" takes the one of `RIDGES` with the least
            error on the batches it observes, and then fits them, too.
        joint: also regress on the heads' output before W_o.
    """

    def __init__(self, ridge: float | str, *, joint: bool) -> None:
        self.ridge, self.joint = ridge, joint
        self.fitted, self.observed = _Sums(), _Sums()
        self.blocks: list[int] = []

    def update(self, sample: Sample) -> None:
        blocks = self._features(sample)
        self.blocks = [block.shape[-1] for block in blocks]
        self.fitted.add(blocks, sample.error[sample.mask].float())

    def observe(self, sample: Sample) -> None:
        if self.ridge == "auto":
            self.observed.add(self._features(sample), sample.error[sample.mask].float())
        else:
            self.update(sample)

    def share(self) -> None:
        self.fitted.share()
        if self.ridge == "auto":
            self.observed.share()

    def solve(self) -> Fit | None:
        if self.fitted.empty:
            return None
        everything = self.fitted if self.observed.empty else self.fitted + self.observed
        solution = self._solution(everything, self._chosen_ridge())
        parts = [part.T.contiguous() for part in solution.split(self.blocks)]
        first = self.blocks[0]
        return Fit(parts[0], parts[1] if len(parts) > 1 else None, everything.gram[:first, :first])

    def _features(self, sample: Sample) -> list[torch.Tensor]:
        blocks = [sample.x[sample.mask].float()]
        if self.joint and sample.heads is not None:
            blocks.append(sample.heads[sample.mask].float())
        return blocks

    def _chosen_ridge(self) -> float:
        if self.ridge != "auto":
            return float(self.ridge)
        if self.observed.empty:
            return DEFAULT_RIDGE
        return min(RIDGES, key=lambda ridge: self.observed.error_of(self._solution(self.fitted, ridge)))

    def _solution(self, sums: _Sums, ridge: float) -> torch.Tensor:
        gram = sums.gram.clone()
        diagonal = gram.diagonal()
        for block in diagonal.split(self.blocks):
            block += max(ridge * block.mean().item(), torch.finfo(torch.float64).tiny)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            # Without ridge and with fewer tokens than features the smallest-norm solution is the sensible one.
            return torch.linalg.lstsq(gram, sums.cross, driver="gelsd").solution
        return torch.cholesky_solve(sums.cross, factor)


def _gram(blocks: list[torch.Tensor]) -> torch.Tensor:
    """The Gram matrix of the concatenated blocks [T, n_i]; the mirrored products are not computed twice."""
    rows: list[list[torch.Tensor]] = []
    for i, left in enumerate(blocks):
        rows.append([rows[j][i].T if j < i else left.T @ right for j, right in enumerate(blocks)])
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def make_solver(initialiser: str, ridge: float | str) -> Solver:
    """The solver of an initialiser's name. Raises ValueError for an unknown one."""
    if initialiser == "zero":
        return Zero()
    if initialiser == "theorem37":
        return Theorem37()
    if initialiser in ("least_squares", "joint_least_squares"):
        return LeastSquares(ridge, joint=initialiser == "joint_least_squares")
    raise ValueError(f"unknown initialiser '{initialiser}'; choose from {', '.join(INITIALISERS)}.")
