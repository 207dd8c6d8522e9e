"""Which projections the parts of an attention serve, in every family: what a role gives up with W_q, W_k or W_v."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import FUSED, OUTPUT_NAMES, PROJECTIONS, output_projection
from uniattn_pl.plan import Heads
from uniattn_pl.plan.roles import KEY, OUTPUT, QUERY, VALUE

NAMES = {
    QUERY: (
        *("q_proj", "q_norm", "q_layernorm", "query_layernorm", "q"),
        *("q_a_proj", "q_a_layernorm", "q_a_norm", "q_b_proj", "q_b_norm", "sinks"),
    ),
    KEY: ("k_proj", "k_norm", "k_layernorm", "key_layernorm", "k"),
    VALUE: ("v_proj", "v_norm", "v"),
    OUTPUT: OUTPUT_NAMES,
}
"""Projection -> what serves it alone, as families call it. Sinks take part in the softmax, which the queries ask."""

LATENT_IN, LATENT_NORM, LATENT_OUT = "kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj"
"""Latent attention (DeepSeek-V2, arXiv 2405.04434, eq. 9 to 19): what makes the latent, and keys and values of it."""


@dataclass(frozen=True)
class RowSpan:
    """Rows of a projection [out, in]: of each of `groups` equal blocks of rows those from `start` to `stop`.

    Attributes:
        serves: the projections that need them.
    """

    serves: frozenset[str]
    groups: int
    start: int
    stop: int

    def rows(self, out_features: int) -> torch.Tensor:
        """The indices of the rows."""
        return torch.arange(out_features).view(self.groups, -1)[:, self.start : self.stop].flatten()


def serves(name: str) -> frozenset[str]:
    """The projections that need a part of an attention; one that nobody knows (a gate) goes with W_o."""
    if name == LATENT_NORM:
        return frozenset({KEY, VALUE})
    return frozenset(projection for projection, names in NAMES.items() if name in names) or frozenset({OUTPUT})


def row_spans(attention: Any) -> dict[str, list[RowSpan]]:
    """Of the projections that serve several at once, which rows serve which."""
    spans: dict[str, list[RowSpan]] = {}
    if hasattr(attention, FUSED):
        spans[FUSED] = list(fused_rows(attention).values())
    elif hasattr(attention, LATENT_IN):
        heads = latent_heads(attention)
        spans[LATENT_IN] = _in_one_group({frozenset({KEY, VALUE}): heads.latent, frozenset({KEY}): heads.rotary})
        unrotated = heads.size - heads.rotary
        spans[LATENT_OUT] = _in_groups(
            heads.queries, {frozenset({KEY}): unrotated, frozenset({VALUE}): heads.value_size}
        )
    elif is_gated(attention):  # Qwen3-Next, Qwen3.5: q_proj gives each head its query and the gate of its output
        size = attention.head_dim
        spans["q_proj"] = _in_groups(
            attention.q_proj.out_features // (2 * size), {frozenset({QUERY}): size, frozenset({OUTPUT}): size}
        )
    return spans


def is_gated(attention: Any) -> bool:
    """Whether q_proj makes a gate of the output beside the queries, as large as they are."""
    query, size = getattr(attention, "q_proj", None), getattr(attention, "head_dim", None)
    if not isinstance(query, nn.Linear) or not size or hasattr(attention, FUSED) or not _separate(attention):
        return False
    return query.out_features == 2 * attention.config.num_attention_heads * size


def _separate(attention: Any) -> bool:
    value = getattr(attention, "v_proj", None)
    return isinstance(value, nn.Linear) and value.out_features % attention.head_dim == 0


def latent_heads(attention: Any) -> Heads:
    """The heads of a latent attention, by the sizes of its projections.

    kv_a_proj_with_mqa [r + R, d] makes the latent [r], which is cached, and the part of the keys that is rotated [R],
    which all heads have in common; kv_b_proj [H * (N + Dv), r] makes of the latent the rest of the keys and the values.
    """
    made, output = getattr(attention, LATENT_IN), output_projection(attention)
    latent = getattr(attention, LATENT_OUT).in_features
    queries = attention.config.num_attention_heads
    rotary, value_size = made.out_features - latent, output.in_features // queries
    unrotated = getattr(attention, LATENT_OUT).out_features // queries - value_size
    return Heads(queries, queries, unrotated + rotary, value_size, latent=latent, rotary=rotary)


def heads_of(attention: Any) -> Heads:
    """The heads of a stock attention, as its projections have them: layers of one model may differ (MiMo-V2).

    Raises:
        UserError: its projections are of no size that fits whole heads.
    """
    if hasattr(attention, LATENT_IN):
        return latent_heads(attention)
    size, config = getattr(attention, "head_dim", None), attention.config
    size = size or getattr(attention, "key_value_proj_dim", None)  # T5's
    if size and hasattr(attention, FUSED):
        heads = Heads(config.num_attention_heads, config.num_key_value_heads, size, size)
        fits = attention.qkv_proj.out_features == heads.query_width + 2 * heads.key_width
    elif size:
        query, key, value = (linear_of(attention, projection).out_features for projection in (QUERY, KEY, VALUE))
        query = query // 2 if is_gated(attention) else query
        heads = Heads(query // size, key // size, size, value // max(1, key // size))
        fits = (query, key, value) == (heads.query_width, heads.key_width, heads.value_width)
    if not size or not fits or output_projection(attention).in_features != heads.output_width:
        sizes = {name: list(p.shape) for name, p in attention.named_parameters() if name.endswith("proj.weight")}
        raise UserError(f"the projections of its attention do not consist of whole heads of {size}: {sizes}.")
    return heads


def linear_of(attention: Any, projection: str) -> Any:
    """W_q, W_k or W_v of an attention, whatever its family calls it."""
    found = (getattr(attention, name, None) for name in NAMES[projection])
    return next(module for module in found if isinstance(module, nn.Linear))


def fused_rows(attention: Any) -> dict[str, RowSpan]:
    """Which rows of `qkv_proj` [(H + 2 Hkv) * D, d] are q_proj, k_proj and v_proj."""
    heads = heads_of(attention)
    widths = (heads.query_width, heads.key_width, heads.value_width)
    spans = _in_one_group(dict(zip((frozenset({part}) for part in (QUERY, KEY, VALUE)), widths, strict=True)))
    return dict(zip(PROJECTIONS[:3], spans, strict=True))


def part_counts(attention: nn.Module) -> dict[frozenset[str], int]:
    """Parameters of a stock attention by the projections that need them."""
    counts: dict[frozenset[str], int] = {}
    spans = row_spans(attention)
    for name, parameter in attention.named_parameters():
        part = name.split(".")[0]
        for needed, share in _shares(spans.get(part), serves(part), len(parameter) if parameter.dim() else 1):
            counts[needed] = counts.get(needed, 0) + int(parameter.numel() * share)
    return counts


def _shares(spans: list[RowSpan] | None, needed: frozenset[str], rows: int) -> Iterator[tuple[frozenset[str], float]]:
    if spans is None:
        yield needed, 1.0
        return
    for span in spans:
        yield span.serves, (span.stop - span.start) * span.groups / rows


def _in_one_group(sizes: dict[frozenset[str], int]) -> list[RowSpan]:
    return _in_groups(1, sizes)


def _in_groups(groups: int, sizes: dict[frozenset[str], int]) -> list[RowSpan]:
    spans, start = [], 0
    for needed, size in sizes.items():
        spans.append(RowSpan(needed, groups, start, start + size))
        start += size
    return spans
