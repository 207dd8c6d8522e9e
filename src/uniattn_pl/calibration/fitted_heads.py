"""Fewer heads of keys and values, chosen so that they lose least on the tokens of a calibration (`merge: fit`).

One head stands for g neighbouring ones. What its queries and W_o multiply it with is free, so that g heads need not be
alike to be merged, only alike up to what can be undone there:

- Values. Each query head h of head i needs O_h V_i x. A common V' and O'_h with the least sum over h of
  |O_h V_i x - O'_h V' x|^2 are a truncated singular value decomposition: of Y C, where Y stacks A_i^(1/2) V_i,
  A_i = sum_h O_h^T O_h, and C C^T = sum x x^T.
- Keys. Rotation by position turns pairs of features, as complex numbers. So does a complex factor c_i per pair, which
  queries can undo: q k_i* = (q c_i*) k'* where k_i = c_i k'. By pair, k' and c_i with the least sum over i of
  e_i |k_i - c_i k'|^2 are a truncated decomposition of rank 1, e_i the squares of the queries of head i.

Biases are the column of a constant input. Where a family norms queries or keys, or turns other pairs, keys are means.
Cost: two decompositions of (g D) x d per merged head. Sources: singular values as in Yu et al. 2024 ("Effectively
compress KV heads"), here with the factors that rotation allows.
"""

from __future__ import annotations

from typing import Any

import torch

from uniattn_pl.calibration.weights import Weights
from uniattn_pl.families.attention_parts import fused_rows, heads_of
from uniattn_pl.families.inspection import FUSED, PROJECTIONS, family_module, output_name, output_projection

LEAST = 1e-12  # relative: what is smaller is no direction of the tokens


class InputGram:
    """The sum of [x, 1] [x, 1]^T [d + 1, d + 1] over tokens, in float64."""

    def __init__(self) -> None:
        self.gram = torch.zeros(0)

    def add(self, x: torch.Tensor, mask: torch.Tensor) -> None:
        """Add x [B, L, d] where the mask [B, L] is True."""
        tokens = x[mask].float()
        tokens = torch.cat([tokens, tokens.new_ones(len(tokens), 1)], dim=1)
        gram = (tokens.T @ tokens).double()
        self.gram = gram if self.gram.numel() == 0 else self.gram.add_(gram)

    @property
    def root(self) -> torch.Tensor:
        """C of C C^T."""
        values, vectors = torch.linalg.eigh(self.gram)
        return vectors * values.clamp(min=0).sqrt()


@torch.no_grad()
def fitted_heads(original: Any, tokens: InputGram, groups: int) -> Weights:
    """Queries, keys, values and W_o of a stock attention with `groups` heads of keys and values, by name."""
    heads, root = heads_of(original), tokens.root
    query, key, value = (_augmented(original, part).to(root.device) for part in PROJECTIONS[:3])  # [.., d + 1]
    queries = query.unflatten(0, (groups, heads.groups // groups, -1, heads.size))  # [n, g, m, D, d + 1]
    keys = key.unflatten(0, (groups, -1, heads.size))  # [n, g, D, d + 1]
    values = value.unflatten(0, (groups, -1, heads.value_size))
    output = output_projection(original).weight.double().to(root.device)
    outputs = output.unflatten(1, (groups, heads.groups // groups, -1, heads.value_size)).movedim(
        0, 3
    )  # [n, g, m, d, Dv]
    merged_values, merged_outputs = zip(*map(_merge_values, values, outputs, [root] * groups), strict=True)
    if turns_halves(original):
        merged_keys, turned = zip(*map(_merge_keys, keys, queries, [root] * groups), strict=True)
        key, query = torch.cat(merged_keys), torch.stack(turned).flatten(0, 3)
    else:
        key = keys.mean(1).flatten(0, 1)
    value = torch.cat(merged_values)
    weights = _by_name(original, query, key, value)
    weights[f"{output_name(original)}.weight"] = torch.stack(merged_outputs).movedim(3, 0).flatten(1)
    return {name: weight.to(output_projection(original).weight.dtype) for name, weight in weights.items()}


def turns_halves(attention: Any) -> bool:
    """Whether feature f of a query or key is turned with feature f + D / 2, all of them, and nothing norms them."""
    config = attention.config
    rope = getattr(config, "rope_parameters", None) or {}
    partial = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None)) or 1.0
    norms = hasattr(attention, "q_norm") or hasattr(attention, "k_norm")
    rotate = getattr(family_module(attention), "rotate_half", None)
    if norms or partial != 1.0 or rotate is None:
        return False
    numbers = torch.arange(2.0, 2.0 + 2 * attention.head_dim)
    first, second = numbers.chunk(2)
    return torch.equal(rotate(numbers), torch.cat([-second, first]))  # GLM and ERNIE turn neighbours


def _merge_values(values: torch.Tensor, outputs: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """V' [Dv, d + 1] and O' [g, m, d, Dv] of V [g, Dv, d + 1] and O [g, m, d, Dv]."""
    size = values.shape[1]
    squares = torch.einsum("gmdi,gmdj->gij", outputs, outputs)
    eigenvalues, vectors = torch.linalg.eigh(squares)
    weighted = ((vectors * eigenvalues.clamp(min=0).sqrt()[:, None]).mT @ values).flatten(0, 1)  # [g * Dv, d + 1]
    left, singular, right = torch.linalg.svd(weighted @ root, full_matrices=False)
    kept = singular[:size].clamp(min=LEAST * float(singular[0]))
    # V' x as large as the values were, so that a ridge on what is fitted next means what it meant.
    scale = (values @ root).square().sum((1, 2)).mean().div(size).sqrt()
    merged = scale * (left[:, :size].T @ weighted) / kept[:, None]
    onto = (values @ root @ right[:size].T) / scale  # [g, Dv, Dv]: V_i x as nearly as V' x gives it
    return merged, outputs @ onto[:, None]


def _merge_keys(keys: torch.Tensor, queries: torch.Tensor, root: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """K' [D, d + 1] and the queries that go with it [g, m, D, d + 1] of keys [g, D, d + 1] and queries."""
    pairs, asking = _complex(keys), _complex(queries)  # [g, D / 2, d + 1], [g, m, D / 2, d + 1]
    turned = root.to(pairs.dtype)
    energy = (asking @ turned).abs().square().sum((1, 3))  # [g, D / 2]
    energy = energy.clamp(min=LEAST * float(energy.max()))
    weighted = (energy.sqrt()[..., None] * pairs).transpose(0, 1)  # [D / 2, g, d + 1]
    left = torch.linalg.svd(weighted @ turned, full_matrices=False).U[..., 0]  # [D / 2, g]
    whole = energy.sum(0).sqrt()  # [D / 2]
    merged = torch.einsum("fg,fgd->fd", left.conj(), weighted) / whole[:, None]
    factors = (left * whole[:, None]).T / energy.sqrt()  # c [g, D / 2]
    return _real(merged), _real(asking * factors.conj()[:, None, :, None])


def _complex(rows: torch.Tensor) -> torch.Tensor:
    """[.., D, n] as complex numbers [.., D / 2, n] of the pairs that rotation turns."""
    first, second = rows.chunk(2, dim=-2)
    return torch.complex(first, second)


def _real(pairs: torch.Tensor) -> torch.Tensor:
    return torch.cat([pairs.real, pairs.imag], dim=-2)


def _augmented(attention: Any, part: str) -> torch.Tensor:
    """Weight and bias [out, d + 1] of q_proj, k_proj or v_proj, also where they are one projection."""
    fused = hasattr(attention, FUSED)
    linear = attention.qkv_proj if fused else getattr(attention, part)
    weight = linear.weight.double()
    bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.double()
    whole = torch.cat([weight, bias[:, None]], dim=1)
    rows = fused_rows(attention)[part] if fused else None
    return whole if rows is None else whole[rows.start : rows.stop]


def _by_name(original: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> Weights:
    """Augmented projections as the parameters that a merged attention has."""
    parts = dict(zip(PROJECTIONS[:3], (query, key, value), strict=True))
    if hasattr(original, FUSED):
        parts = {FUSED: torch.cat([query, key, value])}
    weights = {}
    for name, whole in parts.items():
        weights[f"{name}.weight"] = whole[:, :-1]
        if original.get_submodule(name).bias is not None:
            weights[f"{name}.bias"] = whole[:, -1]
    return weights
