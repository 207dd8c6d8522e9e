"""Rotations that depend on how long a text is: long-rope's two sets of frequencies, dynamic NTK's stretched base.

transformers decides by the largest position of each single forward. A prompt that comes in chunks is then rotated in
several ways, of which no forward over the whole prompt is one; and dynamic NTK leaves on the module what a text called
for, so that a shorter one that follows is rotated for the longer. Here a text has one rotation, its own: `rotated_for`
says how long the text is that a part belongs to, and with `forget_lengths` every forward begins as a fresh model's.

A batch is one text as long as its longest, as in transformers. In decoding each new token is rotated for the length
reached, over keys that stay as they were cached; that is transformers', too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

DYNAMIC, LONGROPE = "dynamic", "longrope"


@contextmanager
def rotated_for(model: nn.Module, length: int = 0) -> Iterator[None]:
    """Within, positions are rotated as in one forward over a text of `length` tokens (or of more, if a position is).

    Any model; of those whose rotation does not depend on the length nothing changes.
    """

    def reach(rotary: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Let the rotation see the text's last position behind those that are asked for [..., L]."""
        _forget(rotary)
        given = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        seen = torch.cat([given, torch.full_like(given[..., :1], length - 1)], dim=-1)
        if "position_ids" in kwargs:
            return args, {**kwargs, "position_ids": seen}
        return (args[0], seen, *args[2:]), kwargs

    with ExitStack() as stack:
        for rotary in _length_dependent(model):
            for handle in (
                rotary.register_forward_pre_hook(reach, with_kwargs=True),
                rotary.register_forward_hook(_without_last),
            ):
                stack.callback(handle.remove)
        yield


def rotation_of(model: nn.Module, length: int) -> Hashable:
    """Equal for two lengths of text that a model rotates alike."""
    return tuple(
        length > _switch(rotary, layers) if kind == LONGROPE else max(length, int(rotary.original_max_seq_len))
        for rotary in _length_dependent(model)
        for layers, kind in _kinds(rotary).items()
        if kind == LONGROPE or DYNAMIC in kind
    )


def forget_lengths(model: nn.Module) -> None:
    """From now on a forward rotates by its own positions, whatever longer text came before; in place."""
    for rotary in _length_dependent(model):
        if _forget not in rotary._forward_pre_hooks.values():
            rotary.register_forward_pre_hook(_forget)


def depends_on_length(model: nn.Module) -> bool:
    """Whether a longer text is rotated in another way: two tokens of padding may change it all."""
    return bool(_length_dependent(model))


def _length_dependent(model: nn.Module) -> list[Any]:
    return [
        module
        for module in model.modules()
        if any(kind == LONGROPE or DYNAMIC in kind for kind in _kinds(module).values())
    ]


def _kinds(module: Any) -> dict[str | None, str]:
    """The kind of rotation of each kind of layer; {None: kind} where all layers have one."""
    kinds = vars(module).get("rope_type")  # not getattr, which is slow for the many modules that have none
    if isinstance(kinds, dict):
        return {layers: str(kind) for layers, kind in kinds.items()}
    return {None: kinds} if isinstance(kinds, str) else {}


def _switch(rotary: Any, layers: str | None) -> int:
    """The length beyond which long-rope takes its other frequencies."""
    parameters = rotary.config.rope_parameters
    return int((parameters if layers is None else parameters[layers])["original_max_position_embeddings"])


def _forget(rotary: Any, *_: Any) -> None:
    """Set dynamic NTK back to where a new module is; a forward over a longer text stretches it again."""
    for layers, kind in _kinds(rotary).items():
        if DYNAMIC not in kind:
            continue
        prefix = "" if layers is None else f"{layers}_"
        used = getattr(rotary, f"{prefix}inv_freq")
        original = getattr(rotary, f"{prefix}original_inv_freq").to(used.device)
        rotary.register_buffer(f"{prefix}inv_freq", original, persistent=False)
        setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)


def _without_last(rotary: Any, args: Any, output: Any) -> Any:
    """The tables [..., L, D] of the positions that were asked for."""
    if isinstance(output, tuple):
        return tuple(table[..., :-1, :] for table in output)
    return output[..., :-1, :]
