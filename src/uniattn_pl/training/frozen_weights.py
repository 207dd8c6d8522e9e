"""Frozen weights in bfloat16 under mixed precision: only what trains needs float32 master weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HalvedLinear(nn.Linear):
    """A frozen float32 matrix whose values bfloat16 holds exactly, kept in it; computes what it computed before.

    Autocast rounds a float32 matrix to bfloat16 at each product, and keeps the copy for the backward pass; this one is
    taken as it is. Outside of autocast it is what it was, in float32.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if not torch.is_autocast_enabled(input.device.type):
            weight = weight.to(input.dtype)
        return nn.functional.linear(input, weight, self.bias)


@torch.no_grad()
def halve_frozen(model: nn.Module, device: torch.device) -> int:
    """Keep frozen float32 matrices in bfloat16 where none of their values changes; returns how many weights.

    The checkpoints of most models are in bfloat16, so that this is all of them but what was fitted since. Embeddings,
    and an output embedding that is tied to them, stay: hidden states have their dtype.

    Args:
        device: where the halved ones are put, one by one, so that the whole model is never there in float32.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    halved = 0
    for module in model.modules():
        if type(module) is not nn.Linear or module.weight.requires_grad or id(module.weight) in embeddings:
            continue
        present = module.weight.data.to(device)
        weight = present.to(torch.bfloat16)
        if torch.equal(weight.to(present.dtype), present):
            module.weight.data = weight
            module.__class__ = HalvedLinear
            halved += weight.numel()
    return halved


def restore_frozen(model: nn.Module) -> None:
    """Undo `halve_frozen`."""
    for module in model.modules():
        if isinstance(module, HalvedLinear):
            module.weight.data = module.weight.data.float()
            object.__setattr__(module, "__class__", nn.Linear)
