"""The model that is learned from: brought when it is first needed, in as little memory of its own as can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uniattn_pl.families.inspection import decoder_layers
from uniattn_pl.modeling.loading.sharded_weights import file_key
from uniattn_pl.training.frozen_weights import halve_frozen
from uniattn_pl.training.objectives.source_maps import publishing


class Teacher:
    """Holds a frozen model beside the one that trains.

    Args:
        build: loads it, in the dtype of the stage's weights.
        halves: keep its matrices in bfloat16 where that changes nothing; under bfloat16 autocast.

    Attributes:
        shard: shards it like the student; None: it is not sharded, and takes over what the student does not train.
        publishes: its attentions can leave what their maps are made of.
    """

    def __init__(self, build: Callable[[], nn.Module], *, halves: bool = False) -> None:
        self._build, self._halves = build, halves
        self._model: nn.Module | None = None
        self.shard: Callable[[nn.Module], None] | None = None
        self.publishes = False

    def beside(self, student: nn.Module) -> nn.Module:
        """The teacher, on the student's device; loaded by the first call."""
        if self._model is None:
            device = next(student.parameters()).device
            model = self._build()
            model = (publishing(model) if self.publishes else model).requires_grad_(False).eval()
            if self._halves:
                halve_frozen(model, device)
            if self.shard is None:
                share_frozen(student, model)
            else:
                self.shard(model)
            self._model = model.to(device)
        return self._model

    def release(self) -> None:
        """Give back its memory."""
        self._model = None


@torch.no_grad()
def share_frozen(student: nn.Module, teacher: nn.Module) -> int:
    """Let the teacher hold the student's own parameters where those do not train and are the same; returns how many.

    What stage 1 freezes, and all but the updates of LoRA, is then in memory once.
    """
    frozen = {file_key(name): p for name, p in student.named_parameters() if not p.requires_grad}
    shared = 0
    for module_name, module in teacher.named_modules():
        for name, own in module.named_parameters(recurse=False):
            other = frozen.get(f"{module_name}.{name}")
            if other is None or other.shape != own.shape or other.dtype != own.dtype:
                continue
            if torch.equal(other, own.to(other.device)):
                setattr(module, name, other)
                shared += own.numel()
    return shared


@contextmanager
def watched_layers(model: Any, layers: Sequence[int]) -> Iterator[Mapping[int, Tensor]]:
    """Within, a forward leaves the hidden states [B, L, d] behind each of these layers in the mapping.

    Nothing is computed in the hooks: they run inside of what gradient checkpointing repeats without them.
    """
    seen: dict[int, Tensor] = {}

    def keep(index: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            seen[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [decoder_layers(model)[index].register_forward_hook(keep(index)) for index in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
