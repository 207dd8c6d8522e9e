"""What calibration achieved, on sequences it did not fit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerError:
    """Mean over held-out tokens of the L2 norm of the error left after a layer's attention.

    `before`: lower layers compensated, this one not. `after`: with this layer's W_c. `scale`: the mean norm of
    the original residual stream there, to judge them by. `rank` of W_c, None: in full. `kept`: where a rank was given
    or chosen, the share that it keeps of the squared error that W_c in full repairs on the tokens fitted.
    `refined`: whether a refinement was kept, None: there was none.
    """

    layer: int
    before: float
    after: float
    scale: float
    rank: int | None = None
    kept: float | None = None
    refined: bool | None = None


@dataclass(frozen=True)
class CalibrationReport:
    """Per layer and overall, the per-token error before and after (paper section 3.3 reports the same ratio).

    Attributes:
        initialiser: how W_c was fitted.
        tokens: that it was fitted on.
        held_out_tokens: that the errors were measured on.
        rows: of each compensated layer, bottom layer first.
    """

    initialiser: str
    tokens: int
    held_out_tokens: int
    rows: tuple[LayerError, ...]

    @property
    def error_before(self) -> float:
        """Mean over compensated layers, per token."""
        return sum(row.before for row in self.rows) / max(len(self.rows), 1)

    @property
    def error_after(self) -> float:
        return sum(row.after for row in self.rows) / max(len(self.rows), 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "error_before": self.error_before, "error_after": self.error_after}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The report as aligned text, one compensated layer per line, top layer first."""
        with_ranks = any(row.rank is not None or row.kept is not None for row in self.rows)
        ranks = [f" {'rank':>5} {'keeps':>6}" if with_ranks else ""]
        ranks += [_rank(row) if with_ranks else "" for row in reversed(self.rows)]
        head = f"{'layer':>7} {'before':>9} {'after':>9} {'left':>6}{ranks[0]}   per-token error on held-out sequences"
        rows = [_line(str(row.layer), row.before, row.after) for row in reversed(self.rows)]
        ends = [_refined(row) for row in reversed(self.rows)]
        lines = [row + rank + end for row, rank, end in zip(rows, ranks[1:], ends, strict=True)]
        note = ["keeps: of the squared error that W_c in full repairs, on the tokens fitted"] * with_ranks
        return [head, *lines, _line("overall", self.error_before, self.error_after), *note]


def _line(label: str, before: float, after: float) -> str:
    remaining = after / before if before else 0.0
    return f"{label:>7} {before:>9.4f} {after:>9.4f} {remaining:>6.1%}"


def _refined(row: LayerError) -> str:
    return "" if row.refined is None else "   refined" if row.refined else "   closed form: no gain by refining"


def _rank(row: LayerError) -> str:
    kept = "-" if row.kept is None else f"{row.kept:.1%}"
    return f" {'full' if row.rank is None else row.rank:>5} {kept:>6}"
