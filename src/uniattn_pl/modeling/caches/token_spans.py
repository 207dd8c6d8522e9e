"""Which tokens a query of a windowed layer sees, and which a cache must keep for the queries to come.

Both follow from the mask that the model makes for its unlimited layers: of the tokens that a query sees by it, the
last w and the first s stay. So padding on either side and packed texts need no rules of their own: a text's sinks are
its own first tokens, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenSpan:
    """A window of `window` last tokens and `sinks` first ones, and where a forward of `length` queries stands.

    Attributes:
        seen: tokens before this forward.
    """

    window: int
    sinks: int
    seen: int
    length: int

    @property
    def total(self) -> int:
        """Tokens with those of this forward."""
        return self.seen + self.length

    @property
    def kept(self) -> int:
        """Tokens that the cache holds afterwards: the next query sees one less than the window, and the sinks."""
        return min(self.total, self.window - 1 + self.sinks)


@dataclass(frozen=True)
class SpanRule:
    """What `span_rule` finds for one forward.

    Attributes:
        mask: [B or 1, 1, L, K + L] over the K tokens held and the new ones, as the kernel takes it; None: all of them.
        keep: which of these the cache holds afterwards [B or 1, K'], ascending; None: all.
        positions: of those [B or 1, K'], counted from the first token there was; None: every token is held.
    """

    mask: torch.Tensor | None
    keep: torch.Tensor | None
    positions: torch.Tensor | None


def span_rule(
    mask: torch.Tensor | None, span: TokenSpan, positions: torch.Tensor | None, device: torch.device
) -> SpanRule:
    """The mask of a windowed layer in one forward, and what its cache keeps.

    Args:
        mask: of the model's own kind for this layer [B or 1, 1, L, M], boolean or additive, over the last M of all
            tokens there were; None: causal.
        span: the layer's, and where the forward stands.
        positions: of the tokens held [B or 1, K], ascending; None: all that were seen.
        device: of the states.
    """
    held = torch.arange(span.seen, device=device)[None] if positions is None else positions
    new = torch.arange(span.seen, span.total, device=device).expand(len(held), -1)
    columns = torch.cat([held, new], dim=1)  # [B or 1, K + L]
    if mask is None and span.length == 1:
        # What is held is what a single query sees: the last tokens and the first.
        needed = (columns < span.sinks) | (columns > span.total - span.window)  # [B or 1, K + 1]
        return SpanRule(None, *_kept(needed, columns, span))
    visible = _visible(mask, span, device)  # [B or 1, 1, L, M]
    first = visible.cumsum(-1, dtype=torch.int32)  # of a token that is seen: its number among those, from 1
    later = first[..., -1:] - first  # tokens seen behind it
    sinks = first <= span.sinks
    needed = (visible & (sinks | (later < span.window - 1)))[:, 0, -1]  # [B or 1, M]: the last query has seen all
    allowed = visible & (sinks | (later < span.window))  # [B or 1, 1, L, M]
    offset = span.total - visible.shape[-1]
    columns = columns.expand(max(len(columns), len(allowed)), -1)
    inside, index = columns >= offset, (columns - offset).clamp(min=0)
    needed = needed.expand(len(index), -1).gather(1, index) & inside  # [B or 1, K + L]
    allowed = _at(allowed, index) & inside[:, None, None]
    if mask is not None and mask.dtype != torch.bool:
        allowed = torch.where(allowed, _at(mask, index), torch.finfo(mask.dtype).min)
    return SpanRule(allowed, *_kept(needed, columns, span))


def _visible(mask: torch.Tensor | None, span: TokenSpan, device: torch.device) -> torch.Tensor:
    """Where a mask lets a query see [B or 1, 1, L, M]."""
    if mask is None:
        keys = torch.arange(span.total, device=device)
        return (keys[None] <= keys[span.seen :, None])[None, None]
    return mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2


def _at(of_columns: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Of [B or 1, 1, L, M] the columns `index` [B or 1, N]: [B or 1, 1, L, N]."""
    batch, length = max(len(of_columns), len(index)), of_columns.shape[2]
    wide = index[:, None, None].expand(batch, 1, length, -1)
    return of_columns.expand(batch, -1, -1, -1).gather(3, wide)


def _kept(
    needed: torch.Tensor, columns: torch.Tensor, span: TokenSpan
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Indices of what is kept of the K + L tokens, and their positions; a row that needs fewer keeps others, too."""
    if span.kept == columns.shape[1]:
        return None, None if span.kept == span.total else columns
    # Of rows with padding some need fewer: all keep the same number, as they are rows of one tensor.
    keep = needed.int().argsort(dim=1, descending=True, stable=True)[:, : span.kept].sort(dim=1).values
    return keep, columns.gather(1, keep)
