"""Running single decoder layers of a transformers model exactly as its own forward would."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.families.anatomy import Anatomy
from uniattn_pl.families.encoder_decoder import decoder_inputs
from uniattn_pl.families.inspection import attention_of, decoder_layers, decoder_of, output_projection
from uniattn_pl.families.passed_layers import handed_on_in, hidden_of
from uniattn_pl.losses.row_logits import inputs_on
from uniattn_pl.modeling.attention.position_bias import ARGUMENT as POSITION_BIAS
from uniattn_pl.modeling.attention.position_bias import MAKES_BIAS
from uniattn_pl.modeling.length_rotations import rotated_for
from uniattn_pl.plan import Compensation, LayerRow

Batch = dict[str, torch.Tensor]
Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done)."""


@dataclass(frozen=True)
class LayerInputs:
    """What the decoder hands to its layers for one batch: the embeddings [B, L, d] and each layer's arguments.

    `of_kernels` are the tensors [1, H, L, L] that every layer's kernel is called with: T5's position biases.
    """

    hidden: torch.Tensor
    arguments: list[dict[str, Any]]
    of_kernels: dict[str, torch.Tensor]

    @cached_property
    def nbytes(self) -> int:
        """Bytes held, summed once; most layers have one mask and one pair of rotary tables in common."""
        values = [self.hidden, *(value for arguments in self.arguments for value in arguments.values())]
        flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
        return sum({t.data_ptr(): t.nbytes for t in flat if isinstance(t, torch.Tensor)}.values())


def layer_inputs(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> LayerInputs:
    """Run the model's own forward with layers that only write down what they are called with."""
    calls: list[tuple[torch.Tensor, dict[str, Any]]] = []
    layers, of_kernels = decoder_layers(model), {}
    inputs = decoder_inputs(model, inputs_on(batch, next(model.parameters()).device))
    if getattr(attention_of(layers[0]), MAKES_BIAS, False):
        length = inputs["input_ids"].shape[1]
        of_kernels = {POSITION_BIAS: attention_of(layers[0]).compute_bias(length, length)}

    def record(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        calls.append((hidden, _by_name(layers[len(calls)], args, kwargs)))
        return (hidden, *of_kernels.values(), None) if of_kernels else hidden

    with replaced_layers(model, record), rotated_for(model):
        decoder_of(model)(**inputs, use_cache=False)
    return LayerInputs(calls[0][0], [arguments for _, arguments in calls], of_kernels)


def _by_name(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a layer's forward behind its hidden states, all of them by name."""
    names = list(inspect.signature(type(layer).forward).parameters)[2:]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def stream_behind(layer: nn.Module, hidden: torch.Tensor, arguments: Mapping[str, Any]) -> torch.Tensor:
    """Run a layer on the stream that enters it [B, L, d]; T5's give more than what leaves them."""
    return hidden_of(layer(hidden, **arguments))


def _as_it_is(output: Any) -> Any:
    return output


@contextmanager
def replaced_layers(model: PreTrainedModel, forward: Callable[..., Any]) -> Iterator[None]:
    """Let every decoder layer do `forward(hidden_states, ...)` instead of its own.

    It gives hidden states, beside an encoder in the form that its decoder takes.
    """
    layers = decoder_layers(model)
    handed_on = _as_it_is if model.config.is_encoder_decoder else handed_on_in(model)
    for layer in layers:
        layer.forward = lambda *args, **arguments: handed_on(forward(*args, **arguments))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


class _Stop(Exception):
    """Ends a layer's forward once everything wanted has been seen."""


@dataclass(frozen=True)
class WatchPoint:
    """A place in a layer whose hidden states can be watched: what enters a module, or what leaves it."""

    module: nn.Module
    leaving: bool = False


@contextmanager
def capture(point: WatchPoint, seen: dict[str, torch.Tensor], name: str, *, stop: bool = False) -> Iterator[None]:
    """Put the hidden states [B, L, n] at `point` into `seen[name]`; with `stop`, end the block there, silently."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any = None) -> None:
        entering = args[0] if args else kwargs["hidden_states"]
        leaving = output[0] if isinstance(output, tuple) else output
        seen[name] = leaving if point.leaving else entering
        if stop:
            raise _Stop

    watch = point.module.register_forward_hook if point.leaving else point.module.register_forward_pre_hook
    handle = watch(hook, with_kwargs=True)
    try:
        yield
    except _Stop:
        pass
    finally:
        handle.remove()


def behind_attention(layer: Any, norm_after_attention: str | None) -> WatchPoint:
    """Where the stream has what the attention adds to it; where nothing is between them, behind the whole layer."""
    if norm_after_attention is None:
        return WatchPoint(layer, leaving=True)
    return WatchPoint(layer.get_submodule(norm_after_attention))


def repaired_point(layer: Any, row: LayerRow, anatomy: Anatomy) -> WatchPoint:
    """Where W_c's output takes effect, so where the error it repairs is measured (paper eq. 13, Table 8).

    In a layer that uses another's cross-attention map, too, behind both attentions.
    """
    compensation = row.compensation or Compensation()
    if compensation.output == "heads":
        return WatchPoint(output_projection(attention_of(layer)))
    if compensation.output == "layer_output" or not row.traits.feed_forward:
        return WatchPoint(layer, leaving=True)
    return behind_attention(layer, anatomy.norm_after_cross if row.cross_map else anatomy.norm_after_attention)


def residual_multiplier(layer: Any) -> float:
    """What a family multiplies an attention's output by before it joins the stream (Granite, Falcon-H1); else 1."""
    return float(getattr(layer, "residual_multiplier", getattr(layer, "attn_out_multiplier", 1.0)))


def repaired_per_unit(layer: Any, row: LayerRow) -> float:
    """How far the repaired point moves per unit of W_c's output: an error e there needs W_c x = e / that."""
    compensation = row.compensation or Compensation()
    scaled = compensation.output == "attention_output" and row.traits.feed_forward
    return residual_multiplier(layer) if scaled else 1.0


def read_point(attention: Any, row: LayerRow) -> WatchPoint:
    """What W_c reads in a converted attention."""
    compensation = row.compensation or Compensation()
    if compensation.input == "heads":
        return WatchPoint(output_projection(attention))
    if compensation.input == "value":
        return WatchPoint(attention.projection("v_proj"), leaving=True)
    return WatchPoint(attention)
