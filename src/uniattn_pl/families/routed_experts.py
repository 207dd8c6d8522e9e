"""Experts that a router chooses from (mixtures of experts), found in the modules of a model of any family."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from uniattn_pl.errors import UserError


@dataclass(frozen=True)
class RoutedExperts:
    """One set of routed experts in a module tree.

    Attributes:
        count: E, how many there are.
        per_token: how many of them serve a token.
        weights: by name in the tree, their weights [E, ..., ...] and biases [E, ...].
    """

    count: int
    per_token: int
    weights: dict[str, nn.Parameter]


def routed_experts(root: nn.Module) -> Iterator[RoutedExperts]:
    """All of them below `root`.

    transformers keeps the experts of a layer as stacked weights [E, out, in] of one module that knows `num_experts`;
    how many serve a token, `top_k`, stands in the router beside it or in the module that holds both.

    Raises:
        UserError: no router tells how many serve a token.
    """
    for name, block in root.named_modules():
        for child_name, child in block.named_children():
            count, prefix = getattr(child, "num_experts", None), f"{name}.{child_name}.".removeprefix(".")
            own = child.named_parameters(recurse=False)
            weights = {prefix + part: p for part, p in own if p.dim() > 1 and p.shape[0] == count}
            if count is not None and any(p.dim() > 2 for p in weights.values()):
                yield RoutedExperts(count, _per_token(block, child, prefix), weights)


def _per_token(block: nn.Module, experts: nn.Module, prefix: str) -> int:
    for module in (*block.children(), block):
        top_k = getattr(module, "top_k", None)
        of_all = getattr(module, "num_experts", experts.num_experts) == experts.num_experts
        if module is not experts and of_all and isinstance(top_k, int):
            return top_k
    raise UserError(
        f"its layers choose from {experts.num_experts} experts ({prefix.removesuffix('.')}), but no router beside them "
        "tells how many serve a token (top_k), so that costs cannot be counted."
    )
