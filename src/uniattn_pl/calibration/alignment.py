"""Which head of the source serves each head of a reuse layer best, decided on calibration tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from uniattn_pl.calibration.maps import map_rows
from uniattn_pl.kernels.map_handles import ReplayedMap
from uniattn_pl.resilience.ranks import sum_over_ranks

CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Observation:
    """One batch at one reuse layer.

    Args:
        own: what the original layer computes its map from.
        source: what the converted model's source published.
        value: the converted layer's values [B, Hkv, S, D].
        heads: the original's heads' output before W_o [B, L, H * D].
        o_weight: W_o [d, H * D].
        mask: True on tokens that count [B, L].
    """

    own: ReplayedMap
    source: ReplayedMap
    value: torch.Tensor
    heads: torch.Tensor
    o_weight: torch.Tensor
    mask: torch.Tensor


class HeadAlignment:
    """Sums, over batches, how badly each source head g serves each head h; `best` takes the least (as LiSA, 2024).

    similarity:    badness[h, g] = - sum over query rows of cos(A_h, S_g), A the layer's own map, S the source's
    output_error:  badness[h, g] = sum over tokens of |(S_g V_h - A_h V_h) W_o,h|^2, W_o,h the columns of head h

    Cost: H^2 products of one row each; at most `CHUNK_BYTES` of maps exist at a time.

    Args:
        criterion: `similarity` (cosine of the maps' rows) or `output_error` (squared error of the head's part of the
            attention's output, its own values under the source's map against the original's output).
    """

    def __init__(self, criterion: str) -> None:
        self.criterion = criterion
        self.badness: torch.Tensor | None = None

    def update(self, seen: Observation) -> None:
        """Add one batch."""
        score = self._output_error if self.criterion == "output_error" else self._dissimilarity
        for sequence, length in enumerate(seen.mask.sum(dim=1).tolist()):
            for start, stop in _chunks(seen.own, int(length)):
                part = score(seen, sequence, start, stop).double().cpu()
                self.badness = part if self.badness is None else self.badness + part

    def sum_over_ranks(self) -> None:
        """Add up what all ranks have seen."""
        if self.badness is not None:
            self.badness = sum_over_ranks(self.badness)

    def best(self) -> list[int]:
        """For each head [H] the source head that serves it best. Raises ValueError before any update."""
        if self.badness is None:
            raise ValueError("heads cannot be aligned without calibration batches.")
        return self.badness.argmin(dim=1).tolist()

    def _dissimilarity(self, seen: Observation, sequence: int, start: int, stop: int) -> torch.Tensor:
        own, source = (
            torch.nn.functional.normalize(map_rows(replayed, sequence, start, stop), dim=-1)
            for replayed in (seen.own, seen.source)
        )
        return -torch.einsum("hcs,gcs->hg", own, source)  # [H, H of the source]

    def _output_error(self, seen: Observation, sequence: int, start: int, stop: int) -> torch.Tensor:
        source = map_rows(seen.source, sequence, start, stop)
        count = len(source)
        value = seen.value[sequence].repeat_interleave(count // seen.value.shape[1], dim=0).float()  # [H, S, D]
        target = seen.heads[sequence, start:stop].float().unflatten(-1, (count, -1)).transpose(0, 1)  # [H, C, D]
        per_head = seen.o_weight.float().unflatten(-1, (count, -1)).transpose(0, 1)  # [H, d, D]
        rows = []
        for head in range(count):
            difference = source @ value[head] - target[head]  # [H of the source, C, D]
            metric = per_head[head].T @ per_head[head]
            rows.append(((difference @ metric) * difference).sum(dim=(1, 2)))
        return torch.stack(rows)  # [H, H of the source]


def _chunks(replayed: ReplayedMap, length: int) -> Iterator[tuple[int, int]]:
    """Ranges of query rows whose maps together stay below `CHUNK_BYTES`."""
    heads, total = replayed.query.shape[1], replayed.key.shape[-2]
    step = max(1, CHUNK_BYTES // (8 * heads * total))
    for start in range(0, length, step):
        yield start, min(start + step, length)
