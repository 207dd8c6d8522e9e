"""Which layers an architecture changes that takes them by index or by number."""

from __future__ import annotations

from collections.abc import Sequence

from uniattn_pl.plan import PlanError


def selected_layers(candidates: Sequence[int], layers: Sequence[int], number: int | None, name: str) -> list[int]:
    """The given `layers`, or the uppermost `number` of the candidates, or all of them.

    Args:
        candidates: layers that can be changed, ascending.
        name: of the architecture.

    Raises:
        PlanError: both are given, an index is given twice, or there are fewer candidates.
    """
    repeated = sorted({index for index in layers if list(layers).count(index) > 1})
    if layers and number is not None:
        raise PlanError(f"{name} takes layers or num_layers, not both.")
    if repeated:
        raise PlanError(f"{name} layers lists {', '.join(map(str, repeated))} more than once.")
    if number is not None and number > len(candidates):
        raise PlanError(f"num_layers is {number}; {len(candidates)} layers can be changed.")
    if layers:
        return sorted(layers)
    return list(candidates[len(candidates) - number :] if number is not None else candidates)
