"""One decoder layer of a model without weights, run once and watched: which part is called with what."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from uniattn_pl.families.encoder_decoder import beside_encoder
from uniattn_pl.families.inspection import PUBLICATIONS, cross_attention_path, decoder_layers, decoder_of
from uniattn_pl.families.passed_layers import HANDED_ON, passed_by

WATCHED = "uniattn_watched"


@contextmanager
def watched_kernel(attention: Any, keywords: list[Mapping[str, Any]]) -> Iterator[None]:
    """Let an attention call a function that attends to nothing and notes what it is told by keyword."""

    def attend(
        _: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        keywords.append(kwargs)
        return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None  # [B, L, H, Dv]

    stock = attention.config._attn_implementation
    # Here alone and not for good: a library that wraps all functions there are (kvpress) must not find it.
    ALL_ATTENTION_FUNCTIONS[WATCHED] = attend
    attention.config._attn_implementation = WATCHED
    try:
        yield
    finally:
        attention.config._attn_implementation = stock
        del ALL_ATTENTION_FUNCTIONS[WATCHED]


@dataclass(frozen=True)
class Call:
    """One call of a child module: its first input, and its first output where it came to one."""

    name: str
    input: Any
    output: Any = None


class _SeenEnough(Exception):
    """Ends a watched forward before the feed-forward, which not every family can run without weights."""


class _Reads(TorchFunctionMode):
    """Notes what every function is given, but those inside of one module."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = False
        self.tensors: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.inside:
            self.tensors += [given for given in args if isinstance(given, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def watch_layer(model: PreTrainedModel, layer: nn.Module, path: str) -> tuple[list[Call], list[torch.Tensor]]:
    """Run a layer up to the norm after its attention (after both, of a decoder beside an encoder), or to what cannot
    run without weights.

    Returns:
        The calls of the attention, of what stands beside it and of the layer's children, in order of their begin; and
        what functions outside of the cross-attention were given.
    """
    begun: list[Call] = []
    handles, reads = [], _Reads()
    cross = cross_attention_path(layer)
    last = cross or path
    for name, child in layer.named_modules():
        if not name or name.count(".") not in {0, path.count(".")} or name.startswith(f"{path}."):
            continue

        def begin(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
            begun.append(Call(name, args[0] if args else next(iter(kwargs.values()), None)))
            reads.inside = reads.inside or name == cross
            of_last = next((call for call in begun if call.name == last), None)
            if "norm" not in name or of_last is None or begun[-1].input is begun[0].input:
                return
            if cross is None or begun[-1].input is not of_last.output:  # a norm of its own output is passed
                raise _SeenEnough

        def end(_: nn.Module, args: Any, output: Any, name: str = name) -> None:
            latest = max(index for index, call in enumerate(begun) if call.name == name)
            begun[latest] = replace(begun[latest], output=output[0] if isinstance(output, tuple) else output)
            reads.inside = reads.inside and name != cross
            reads.tensors = [read for read in reads.tensors if read is not begun[latest].output]  # by itself

        handles += [child.register_forward_pre_hook(begin, with_kwargs=True), child.register_forward_hook(end)]
    args, kwargs = _call_of_layer(model, layer)
    try:
        with reads:
            layer(*args, **kwargs)
    except _SeenEnough:
        pass
    except Exception:
        if path not in [call.name for call in begun if call.output is not None]:
            raise
    finally:
        for handle in handles:
            handle.remove()
    return begun, reads.tensors


def _call_of_layer(model: PreTrainedModel, layer: nn.Module) -> tuple[Any, Any]:
    """Positional and keyword arguments that the decoder gives a layer; those below it hand on what they get."""
    seen: list[tuple[Any, Any]] = []

    def record(_: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((args, kwargs))
        raise _SeenEnough

    for module in model.modules():
        # Some rotations look at the positions to choose their frequencies; without weights there are none to look at.
        kind = getattr(module, "rope_type", None)
        if kind is not None:
            module.rope_type = dict.fromkeys(kind, "default") if isinstance(kind, dict) else "default"  # type: ignore[assignment]
    ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
    inputs = {"input_ids": ids, "use_cache": False, PUBLICATIONS: None, **beside_encoder(model, 2)}
    # With a mask and the eager kernel transformers looks at no values, of which meta tensors have none; some families
    # look at the mask themselves (Granite 4), and not where there is none.
    masks: tuple[dict[str, Any], ...] = ({"attention_mask": torch.ones_like(ids)}, {})
    error: Exception = RuntimeError("its layers are not reached")
    handle = layer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        for handed_on, mask in product(HANDED_ON, masks):
            try:
                with passed_by(decoder_layers(model), handed_on, but=layer):
                    decoder_of(model)(**mask, **inputs)
            except _SeenEnough:
                hidden = next(iter([*seen[-1][0], *seen[-1][1].values()]), None)
                if isinstance(hidden, torch.Tensor) and hidden.dim() == 3:
                    return seen[-1]
            # the family's own code: what it does not take shows in whatever it raises
            except Exception as failed:
                error = failed
    finally:
        handle.remove()
    raise error
