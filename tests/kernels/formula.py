"""Attention as its formula says, in float64, and cases for kernels that must give the same."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from hypothesis import strategies as st


@dataclass(frozen=True)
class Drawn:
    """One case: query [B, H, L, D], key, value and another layer's values [B, Hkv, S, .], and what a family asks."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    other: torch.Tensor
    heads: tuple[int, ...]
    sinks: torch.Tensor | None = None
    softcap: float | None = None
    scaling: float | None = None

    @property
    def queries(self) -> int:
        return self.query.shape[-2]

    @property
    def keys(self) -> int:
        return self.key.shape[-2]

    @classmethod
    def make(
        cls,
        batch: int,
        groups: int,
        per_group: int,
        queries: int,
        keys: int,
        head_dim: int,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        **asked: Any,
    ) -> Drawn:
        """Random numbers of these sizes; keys and values are views into longer buffers, as a cache gives them."""
        generator = torch.Generator().manual_seed(seed)
        heads = groups * per_group
        query = torch.randn(batch, heads, queries, head_dim, generator=generator)
        room = torch.randn(3, batch, groups, keys + 3, head_dim, generator=generator)
        key, value, other = (buffer[..., :keys, :] for buffer in room.to(dtype))
        order = tuple(torch.randint(heads, (heads,), generator=generator).tolist())
        return cls(query.to(dtype), key, value, other, order, **asked)

    def to(self, device: str) -> Drawn:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: tensor.to(device) for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
        return replace(self, **moved)


@st.composite
def drawn_attention(draw: st.DrawFn, *, one_query: bool = False) -> Drawn:
    """Lengths that are no multiple of a tile, groups of 1 to 8, heads of 64 to 256, and two odd ones."""
    queries = 1 if one_query else draw(st.integers(1, 40))
    keys = queries + draw(st.integers(0, 200 if one_query else 40))
    groups, per_group = draw(st.sampled_from([(1, 1), (1, 8), (2, 3), (3, 1), (1, 2)]))
    head_dim = draw(st.sampled_from([64, 64, 128, 256, 80, 8]))
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    seed = draw(st.integers(0, 2**16))
    sinks = torch.randn(groups * per_group, generator=torch.Generator().manual_seed(seed + 1))
    return Drawn.make(
        draw(st.integers(1, 2)) if groups * per_group < 4 else 1,
        groups,
        per_group,
        queries,
        keys,
        head_dim,
        dtype=dtype,
        seed=seed,
        sinks=draw(st.sampled_from([None, sinks])),
        softcap=draw(st.sampled_from([None, None, 5.0])),
        scaling=draw(st.sampled_from([None, 0.3 * head_dim**-0.5])),
    )


def attention_by_formula(
    drawn: Drawn, value: torch.Tensor, mask: torch.Tensor | None, heads: tuple[int, ...] | None = None
) -> torch.Tensor:
    """softmax([cap(scale Q K^T), sinks]) without the sinks' column, times V: [B, L, H, Dv]; zeros where nothing is.

    Args:
        drawn: the case.
        value: [B, Hkv, S, Dv].
        mask: boolean [B or 1, 1 or Hkv, L, S].
        heads: which head's map serves each head.
    """
    total_heads, per_group = drawn.query.shape[1], drawn.query.shape[1] // drawn.key.shape[1]
    query, key, values = drawn.query.double(), drawn.key.double(), value.double()
    key, values = (tensor.repeat_interleave(per_group, dim=1) for tensor in (key, values))
    scale = drawn.query.shape[-1] ** -0.5 if drawn.scaling is None else drawn.scaling
    scores = query @ key.transpose(2, 3) * scale
    if drawn.softcap is not None:
        scores = drawn.softcap * torch.tanh(scores / drawn.softcap)
    if mask is not None:
        repeats = total_heads // mask.shape[1]
        scores = scores.masked_fill(~mask.repeat_interleave(repeats, dim=1), -torch.inf)
    if drawn.sinks is not None:
        column = drawn.sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, column], dim=-1)
    weights = torch.softmax(scores, dim=-1).nan_to_num(0.0)[..., : drawn.keys]
    if heads is not None:
        weights = weights[:, list(heads)]
    return (weights @ values).transpose(1, 2).float()
