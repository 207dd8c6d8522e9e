"""The reference of every conversion: the stock model with another function in place of its attention kernel.

Nothing of the package computes here; a plan is read only for what it says: per layer a role, a source, a size.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

KEYS_AND_VALUES = ("k_proj", "v_proj", "k.", "v.")


class _Interface:
    """Stands for transformers' table of kernels in one modeling file: whatever it is asked for, the exchanged one."""

    def __init__(self, table: Any, exchange: Any, attentions: list[Any]) -> None:
        self.table, self.exchange, self.attentions = table, exchange, attentions

    def get_interface(self, name: str, default: Any) -> Any:
        kernel = self.table.get_interface(name, default)

        def attend(attention: Any, *args: Any, **kwargs: Any) -> Any:
            if not any(attention is own for own in self.attentions):  # a tower's
                return kernel(attention, *args, **kwargs)
            return self.exchange(kernel, attention, *args, **kwargs)

        return attend


@contextmanager
def exchanged(model: Any, plan: Any, compensations: Mapping[int, torch.Tensor] | None = None) -> Iterator[None]:
    """A stock model that computes what `plan` says, in whole forwards and, for layers of one window, in steps.

    A reader of a map calls its source's kernel again, with the source's queries, keys and mask and its own values, and
    where the plan says so in cross-attention, too; one of keys and values calls its own with the source's. A dropped
    layer's attention is zero, a layer that is left out hands on what it gets, a window is a mask. `compensations`:
    W_c [d, d] by layer; of a layer with the cross-attention map of another it adds to the stream behind both.
    """
    layers = layers_of(model)
    attentions = [attention_in(layer) for layer in layers]
    crosses = [cross_attention_in(layer) for layer in layers]
    given: dict[int, tuple[Any, ...]] = {}  # what a map is made of
    crossed: dict[int, tuple[Any, ...]] = {}  # and one of cross-attention
    entered: dict[int, torch.Tensor] = {}  # what self-attention was given
    shared: dict[int, tuple[Any, ...]] = {}
    rotations: dict[int, Any] = {}

    def exchange(
        kernel: Any, attention: Any, query: Any, key: Any, value: Any, mask: Any = None, **arguments: Any
    ) -> Any:
        mask = arguments.pop("attention_mask", mask)
        if any(attention is cross for cross in crosses):
            row = plan.rows[attention.layer_idx]
            if row.cross_map:
                attention, query, key, mask, arguments = crossed[row.source]
            crossed[row.index] = (attention, query, key, mask, arguments)
        if not any(attention is own for own in attentions):  # an encoder's, or one to its states
            return kernel(attention, query, key, value, mask, **arguments)
        row = plan.rows[attention.layer_idx]
        if row.window is not None:
            mask = within(row.window, row.sinks, mask, query, key)
        if row.role == "reuse":
            of_source, query, key, mask, arguments = given[row.source]
            return kernel(of_source, query, key, value, mask, **arguments)
        if row.role == "share_kv":
            key, value, mask = shared[row.source]
        given[row.index], shared[row.index] = (attention, query, key, mask, arguments), (key, value, mask)
        return kernel(attention, query, key, value, mask, **arguments)

    def rotate(attention: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        row = plan.rows[attention.layer_idx]
        if row.role == "share_kv":  # its queries as its source's keys
            kwargs = {**kwargs, "position_embeddings": rotations[row.source]}
        rotations[row.index] = kwargs.get("position_embeddings")
        return args, kwargs

    with ExitStack() as undo:
        for module in {sys.modules[type(attention).__module__] for attention in attentions if attention is not None}:
            undo.callback(setattr, module, "ALL_ATTENTION_FUNCTIONS", module.ALL_ATTENTION_FUNCTIONS)
            module.ALL_ATTENTION_FUNCTIONS = _Interface(
                module.ALL_ATTENTION_FUNCTIONS, exchange, [*attentions, *crosses]
            )
        for attention in attentions:
            if attention is not None:
                undo.callback(attention.register_forward_pre_hook(rotate, with_kwargs=True).remove)
        for row in plan.rows:
            w_c = (compensations or {}).get(row.index)
            if row.cross_map and w_c is not None:
                note = _noted(entered, row.index)
                undo.callback(attentions[row.index].register_forward_pre_hook(note, with_kwargs=True).remove)
                joining = getattr(layers[row.index], "post_cross_attn_layernorm", crosses[row.index])
                hook = joining.register_forward_hook(_joined(entered, row.index, w_c))
            elif row.role == "skip":
                hook = layers[row.index].register_forward_hook(_left_out(w_c), with_kwargs=True)
            elif row.role == "drop" or w_c is not None:
                hook = attentions[row.index].register_forward_hook(_compensated(row.role, w_c), with_kwargs=True)
            else:
                continue
            undo.callback(hook.remove)
        yield


def layers_of(model: Any) -> nn.ModuleList:
    """The decoder layers: the decoder's list of as many modules as its config has layers."""
    decoder = model.get_decoder()
    config = decoder.config.get_text_config()
    depth = getattr(config, "decoder_layers", config.num_hidden_layers)
    lists = (module for module in decoder.modules() if isinstance(module, nn.ModuleList))
    return next(found for found in lists if len(found) == depth)


def attention_in(layer: nn.Module) -> Any:
    """The first part of a layer that its family calls an attention; None where it has none."""
    if isinstance(getattr(layer, "layer", None), nn.ModuleList):  # T5
        return layer.layer[0].SelfAttention  # type: ignore[index, union-attr]
    return next((part for part in layer.children() if _attends(part)), None)


def cross_attention_in(layer: nn.Module) -> Any:
    """The second such part of a layer, an attention to the states of an encoder; None where it has none."""
    if isinstance(getattr(layer, "layer", None), nn.ModuleList):  # T5
        return layer.layer[1].EncDecAttention  # type: ignore[index, union-attr]
    return next((part for part in list(layer.children()) if part is not attention_in(layer) and _attends(part)), None)


def _attends(part: nn.Module) -> bool:
    return "Attention" in type(part).__name__


def _noted(entered: dict[int, torch.Tensor], index: int) -> Any:
    def note(_: Any, args: Any, kwargs: Any) -> None:
        entered[index] = _hidden(args, kwargs)

    return note


def _joined(entered: dict[int, torch.Tensor], index: int, w_c: torch.Tensor) -> Any:
    def change(_: Any, args: Any, output: Any) -> Any:
        added = linear(entered[index], w_c)
        return (output[0] + added, *output[1:]) if isinstance(output, tuple) else output + added

    return change


def _hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def _compensated(role: str, w_c: torch.Tensor | None) -> Any:
    def change(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        changed = torch.zeros_like(output[0]) if role == "drop" else output[0]
        return (changed if w_c is None else changed + linear(_hidden(args, kwargs), w_c), *output[1:])

    return change


def _left_out(w_c: torch.Tensor | None) -> Any:
    def change(_: Any, args: Any, kwargs: Any, output: Any) -> Any:
        stream = _hidden(args, kwargs)
        stream = stream if w_c is None else stream + linear(stream, w_c)
        return (stream, *output[1:]) if isinstance(output, tuple) else stream

    return change


def within(window: int, sinks: int, mask: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """The mask [B, 1, L, S], to be added, under which a query sees the last and the first tokens of what it saw."""
    length, total = query.shape[2], key.shape[2]
    if mask is None:
        seen = torch.ones(length, total, dtype=torch.bool).tril(total - length)[None, None]
    else:
        seen = mask if mask.dtype == torch.bool else mask == 0
    number = seen.cumsum(-1)  # of each token among those that the query sees, from 1
    kept = seen & ((number > number[..., -1:] - window) | (number <= sinks))
    return torch.zeros(kept.shape, dtype=query.dtype).masked_fill(~kept, torch.finfo(query.dtype).min)


@torch.no_grad()
def give_equal_heads(model: Any, plan: Any) -> None:
    """Let every head of keys and values be the mean of those that a layer of `plan` merges into one, in place."""
    for row in plan.rows:
        if row.kv_heads is None:
            continue
        attention = attention_in(layers_of(model)[row.index])
        size = getattr(attention, "head_dim", None) or attention.key_value_proj_dim
        key = getattr(attention, "k_proj", None) or getattr(attention, "k", None)
        heads = model.config.num_key_value_heads if key is None else key.out_features // size
        for name, parameter in attention.named_parameters():
            if name.startswith("qkv_proj"):
                width = heads * size
                spans = [slice(len(parameter) - 2 * width, len(parameter) - width), slice(-width, None)]
            elif name.startswith(KEYS_AND_VALUES) or (name == "k_norm.weight" and len(parameter) > size):
                spans = [slice(None)]
            else:
                spans = []
            for span in spans:
                merged = parameter[span].unflatten(0, (row.kv_heads, heads // row.kv_heads, -1)).mean(1, keepdim=True)
                parameter[span] = merged.expand(-1, heads // row.kv_heads, *merged.shape[2:]).flatten(0, 2)
