"""What a converted layer has given up, and so what a further plan cannot ask of it."""

from __future__ import annotations

from collections.abc import Sequence

from uniattn_pl.plan.layer_row import LayerRow

_CROSS = ", with queries and keys of its cross-attention given up,"


def lost_parts(former: Sequence[LayerRow], rows: Sequence[LayerRow]) -> list[str]:
    """Why layers of a model built on `former` cannot become `rows`, a clause each: what is gone does not come back."""
    if len(rows) != len(former):
        return [f"the plan has {len(rows)} layers, the model {len(former)}"]
    return [
        f"layer {new.index} is '{old.role}' already{_CROSS * old.cross_map} and cannot become '{new.role}'"
        for old, new in zip(former, rows, strict=True)
        if old.operated and new != old and not _only_gives_up(old, new)
    ]


def _only_gives_up(old: LayerRow, new: LayerRow) -> bool:
    """Whether `new` needs nothing `old` no longer has: projection, feed-forward, a W_c but the one in its place."""
    if old.cross_map and not new.cross_map and new.traits.feed_forward:  # queries of its cross-attention
        return False
    if new.traits.feed_forward != old.traits.feed_forward:  # a W_c would read another stream
        return not new.traits.feed_forward and not new.compensated
    return not new.traits.computes and new.compensation in (None, old.compensation)
