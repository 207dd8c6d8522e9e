"""Where a W_c reads, where its output is added, and how large it is (paper eq. 14, Table 8, Appendix B)."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.errors import did_you_mean
from uniattn_pl.plan.plan_error import PlanError
from uniattn_pl.plan.roles import OUTPUT, VALUE
from uniattn_pl.plan.shape import Heads

COMPENSATION_INPUTS = {
    "attention_input": "x [d], what enters the attention: the output of the norm before it (rows 1 to 3 of Table 8)",
    "value": "V [Hkv * Dv], the layer's own values",
    "heads": "the heads' output [H * Dv], before W_o",
}
COMPENSATION_OUTPUTS = {
    "attention_output": "the attention's output [d], after W_o (row 1: the paper's choice)",
    "layer_output": "the layer's output [d], after the feed-forward (row 2, coarser)",
    "heads": "the heads' output [H * Dv], before W_o (rows 3 and 4, finer)",
}
AUTO_RANK = "auto"
# What a layer must still compute for a W_c to read or add there.
NEEDED_PROJECTION = {"value": VALUE, "heads": OUTPUT}


@dataclass(frozen=True)
class Compensation:
    """A layer's linear compensation `W_c` (paper eq. 14: x' = s V W_o + x + norm(x) W_c).

    Attributes:
        input: what W_c reads, a name of `COMPENSATION_INPUTS`.
        output: what its output is added to, a name of `COMPENSATION_OUTPUTS`.
        rank: W_c is a product of two thin matrices of this rank; None: one matrix in full; `AUTO_RANK`: chosen when it
            is fitted, until when it is, and counts as, a full one, the largest it can become.
        bias: it adds a constant vector, too.

    Raises:
        PlanError: there is no such place, or no such rank.
    """

    input: str = "attention_input"
    output: str = "attention_output"
    rank: int | str | None = None
    bias: bool = False

    def __post_init__(self) -> None:
        for place, places in ((self.input, COMPENSATION_INPUTS), (self.output, COMPENSATION_OUTPUTS)):
            if place not in places:
                near = did_you_mean(str(place), places)
                raise PlanError(f"a W_c is placed at '{place}'.{near} Allowed: {', '.join(places)}.")
        if isinstance(self.rank, str) and self.rank != AUTO_RANK:
            raise PlanError(f"a W_c has the rank '{self.rank}'; it is a whole number, or {AUTO_RANK}.")

    @property
    def thin(self) -> int | None:
        """The rank of two thin matrices; None: one in full."""
        return None if self.rank == AUTO_RANK else self.rank  # type: ignore[return-value]  # no other text is a rank

    @property
    def needed_projections(self) -> frozenset[str]:
        """Projections that the layer must keep for this W_c to have something to read and to add to."""
        places = (self.input, self.output)
        return frozenset(NEEDED_PROJECTION[place] for place in places if place in NEEDED_PROJECTION)

    def sizes(self, heads: Heads, hidden_size: int) -> tuple[int, int]:
        """Features that W_c reads and features that it adds to, in a layer of these heads: of d, Hkv * Dv, H * Dv."""
        of_place = {"value": heads.value_width, "heads": heads.output_width}
        return of_place.get(self.input, hidden_size), of_place.get(self.output, hidden_size)

    def weights(self, heads: Heads, hidden_size: int) -> int:
        """Elements of W_c: `in x out` in full, `rank x (in + out)` of low rank, and `out` of a bias."""
        read, added = self.sizes(heads, hidden_size)
        matrix = read * added if self.thin is None else self.thin * (read + added)
        return matrix + self.bias * added
