"""How W_c (and W_o) of one layer follow from what calibration saw there.

All fit the error that unification leaves after a layer's attention, for every token t,
    e_t = x'_original - x'_unified    (paper eq. 13),
by a linear map of the pre-norm input x_t: W_c x_t = e_t as nearly as can be (paper eq. 14 adds that to the stream).
Tensors are in `nn.Linear` layout at the end (W [out, in], applied as x W^T); the normal equations hold W^T [in, out].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from uniattn_pl.config.sections.calibration_section import INITIALISERS, LEAST_SQUARES
from uniattn_pl.resilience.ranks import sum_over_ranks, sum_rows_over_ranks

DEFAULT_RIDGE = 1e-2
RIDGES = (1e-4, 1e-3, DEFAULT_RIDGE, 1e-1, 1.0)


@dataclass(frozen=True)
class LayerSample:
    """One batch at one layer: x [B, L, d] and error [B, L, d]; heads [B, L, H*D] enters W_o (None if it has none);
    mask [B, L] is True on tokens that count."""

    x: torch.Tensor
    error: torch.Tensor
    heads: torch.Tensor | None
    mask: torch.Tensor


@dataclass(frozen=True)
class Fit:
    """The solution in `nn.Linear` layout: W_c [out, in], and what to add to W_o [d, H*D], if anything.

    `gram` [in, in], where it is known, is what a low-rank W_c is judged by: the sum of x x^T, of centred x where there
    is a `bias` [out], and twice the ridge on its diagonal. `mean` [in] is then the mean of x.
    """

    w_c: torch.Tensor
    delta_o: torch.Tensor | None = None
    gram: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    mean: torch.Tensor | None = None


class Solver(ABC):
    """Accumulates sums over batches, then solves once; memory does not depend on the number of samples."""

    @abstractmethod
    def update(self, sample: LayerSample) -> None:
        """Add one batch to the sums."""

    def observe(self, sample: LayerSample) -> None:
        """See one batch that choices are made by; solvers that choose nothing fit it like any other."""
        self.update(sample)

    @abstractmethod
    def sum_over_ranks(self) -> None:
        """Add up the sums of all ranks, each of which has seen other batches."""

    @abstractmethod
    def solve(self) -> Fit | None:
        """The weights that fit all batches, or None to leave them as they are."""


class Zero(Solver):
    """W_c = 0 (paper Table 2, zero-init)."""

    def update(self, sample: LayerSample) -> None:
        pass

    def sum_over_ranks(self) -> None:
        pass

    def solve(self) -> Fit | None:
        return None


class Theorem37(Solver):
    """The paper's closed form (Theorem 3.7, eq. 15): W_c = pinv(E[x]) E[e], means over samples, per position.

    As the official code: float32 SVD, absolute cut-off 1e-10. Unlike it, padding does not enter the means.
    With fewer positions than d the mean error is interpolated, which can harm single tokens.
    """

    cutoff = 1e-10

    def __init__(self) -> None:
        self.x = self.error = self.count = torch.zeros(0)  # [L, d], [L, d], [L, 1]: sums over samples

    def update(self, sample: LayerSample) -> None:
        mask = sample.mask[..., None]
        self.x = _grow_and_add(self.x, (sample.x * mask).float().sum(0))
        self.error = _grow_and_add(self.error, (sample.error * mask).float().sum(0))
        self.count = _grow_and_add(self.count, mask.float().sum(0))

    def sum_over_ranks(self) -> None:
        self.x, self.error, self.count = map(sum_rows_over_ranks, (self.x, self.error, self.count))

    def solve(self) -> Fit | None:
        # W_c^T = pinv(X) E,  pinv(X) = V diag(1 / s) U^T  of  X = U diag(s) V^T,  X = E[x] and E = E[e], both [L, d]
        positions = self.count[:, 0] > 0
        x, error = (total[positions] / self.count[positions] for total in (self.x, self.error))
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
    """What the normal equations need, summed over all tokens t with features f_t [n] and errors e_t [out].

    gram [n, n] = sum f_t f_t^T,  cross [n, out] = sum f_t e_t^T,  squares = sum |e_t|^2.
    """

    def __init__(self) -> None:
        self.gram = self.cross = torch.zeros(0)
        self.squares = 0.0

    def add(self, blocks: list[torch.Tensor], error: torch.Tensor) -> None:
        """Add features [T, n_i], in blocks, and errors [T, out]."""
        # Products in float32, sums over batches in float64: thousands of batches do not lose digits.
        gram, cross = _gram(blocks).double(), torch.cat([block.T @ error for block in blocks]).double()
        # In place: 8B has 800 MB of them.
        self.gram, self.cross = (gram, cross) if self.empty else (self.gram.add_(gram), self.cross.add_(cross))
        self.squares += float(error.double().square().sum())

    def sum_over_ranks(self) -> None:
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
        """Squared error that the features times `solution` S [n, out] leave on these tokens."""
        # sum |e_t - S^T f_t|^2 = squares - 2 <S, cross> + <S, gram S>
        explained = 2 * (solution * self.cross).sum() - (solution * (self.gram @ solution)).sum()
        return self.squares - float(explained)


class LeastSquares(Solver):
    """Ridge regression of the error on x over all tokens; jointly with a correction of W_o where `joint`.

    Features of a token are f = [x] (d), or jointly f = [x, heads] (d + H * D), so that the solution S splits into
    W_c^T and the correction of W_o^T; with a bias a constant feature 1 is appended. The normal equations are

        (sum f f^T + ridge * diag(r)) S = sum f e^T,

        joint, in blocks:  | X^T X + r_x I    X^T A          |  | W_c^T  |     | X^T E |
                           | A^T X            A^T A + r_a I  |  | dW_o^T |  =  | A^T E |

    with X [T, d], A = heads [T, H * D], E [T, out], and r_x, r_a `ridge` times the mean diagonal of their block.

    Of the error that dW_o leaves, a W_c whose output is projected by P = P^T = P^2 repairs
        sum |e|^2 - |e - P W x|^2 = 2 tr(P W X^T E) - tr(P W X^T X W^T) = tr(P W (X^T X + 2 r_x I) W^T),
    as the normal equations say that X^T E = (X^T X + r_x I) W^T: that matrix is the `gram` of the fit.

    Cost, n features: T n (n + out) products to sum, n^3 / 3 to solve, n (n + out) float64 numbers whatever T.
    Source: ordinary ridge regression in place of the paper's eq. 15, by token instead of by position.

    Args:
        ridge: relative to the mean diagonal of each block (x, heads), so that W_o is pulled towards its present value
            and W_c towards zero, the bias not at all; "auto" takes the one of `RIDGES` with the least error on the
            batches it observes, and then fits them, too.
        joint: also regress on the heads' output before W_o.
        bias: W_c has one.
    """

    def __init__(self, ridge: float | str, *, joint: bool, bias: bool = False) -> None:
        self.ridge, self.joint, self.bias = ridge, joint, bias
        self.fitted, self.observed = _Sums(), _Sums()
        self.blocks: list[int] = []

    def update(self, sample: LayerSample) -> None:
        blocks = self._features(sample)
        self.blocks = [block.shape[-1] for block in blocks]
        self.fitted.add(blocks, sample.error[sample.mask].float())

    def observe(self, sample: LayerSample) -> None:
        if self.ridge == "auto":
            self.observed.add(self._features(sample), sample.error[sample.mask].float())
        else:
            self.update(sample)

    def sum_over_ranks(self) -> None:
        self.fitted.sum_over_ranks()
        if self.ridge == "auto":
            self.observed.sum_over_ranks()

    def solve(self) -> Fit | None:
        if self.fitted.empty:
            return None
        everything = self.fitted if self.observed.empty else self.fitted + self.observed
        ridge = self._chosen_ridge()
        solution = self._solution(everything, ridge)
        parts = [part.T.contiguous() for part in solution.split(self.blocks)]
        size = self.blocks[0]
        gram = everything.gram[:size, :size].clone()
        gram.diagonal().add_(2 * ridge * gram.diagonal().mean())
        if not self.bias:
            return Fit(parts[0], parts[1] if len(parts) > 1 else None, gram)
        # The last feature is 1: its products with x sum up x, and with itself the tokens.
        tokens = everything.gram[-1, -1]
        mean = everything.gram[:size, -1] / tokens
        centred = gram - tokens * torch.outer(mean, mean)
        return Fit(parts[0], parts[1] if len(parts) > 2 else None, centred, bias=parts[-1].squeeze(-1), mean=mean)

    def _features(self, sample: LayerSample) -> list[torch.Tensor]:
        blocks = [sample.x[sample.mask].float()]  # [T, d]
        if self.joint and sample.heads is not None:
            blocks.append(sample.heads[sample.mask].float())  # [T, H * D]
        if self.bias:
            blocks.append(blocks[0].new_ones(len(blocks[0]), 1))
        return blocks

    def _chosen_ridge(self) -> float:
        if self.ridge != "auto":
            return float(self.ridge)
        if self.observed.empty:
            return DEFAULT_RIDGE
        return min(RIDGES, key=lambda ridge: self.observed.error_of(self._solution(self.fitted, ridge)))

    def _solution(self, sums: _Sums, ridge: float) -> torch.Tensor:
        """S [n, out] of the normal equations, by Cholesky."""
        gram = sums.gram.clone()
        diagonals = list(gram.diagonal().split(self.blocks))
        penalised = diagonals[:-1] if self.bias else diagonals
        for diagonal in penalised:
            diagonal += max(ridge * diagonal.mean().item(), torch.finfo(torch.float64).tiny)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if failed:
            # Without ridge and with fewer tokens than features the smallest-norm solution is the sensible one.
            return torch.linalg.lstsq(gram, sums.cross, driver="gelsd").solution
        return torch.cholesky_solve(sums.cross, factor)


def _gram(blocks: list[torch.Tensor]) -> torch.Tensor:
    """The Gram matrix of the concatenated blocks [T, n_i]; the mirrored products are not computed twice."""
    rows: list[list[torch.Tensor]] = []
    for i, upper in enumerate(blocks):
        rows.append([rows[j][i].T if j < i else upper.T @ other for j, other in enumerate(blocks)])
    return torch.cat([torch.cat(row, dim=1) for row in rows])


def make_solver(initialiser: str, ridge: float | str, *, bias: bool = False) -> Solver:
    """The solver of an initialiser's name, for a W_c with or without bias. Raises ValueError for an unknown one."""
    if initialiser == "zero":
        return Zero()
    if initialiser == "theorem37":
        return Theorem37()
    if initialiser in LEAST_SQUARES:
        return LeastSquares(ridge, joint=initialiser == "joint_least_squares", bias=bias)
    raise ValueError(f"unknown initialiser '{initialiser}'; choose from {', '.join(INITIALISERS)}.")
