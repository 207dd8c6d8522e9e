"""Logits and losses from rows of last hidden states, whatever a family does with its logits, never all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils.generic import ModelOutput

from uniattn_pl.families.encoder_decoder import has_encoder
from uniattn_pl.families.inspection import decoder_of

LOSS_CHUNK = 1024
INPUTS = ("input_ids", "attention_mask", "position_ids", "decoder_input_ids", "decoder_attention_mask")
"""What of a batch a model is called with; those of a decoder are there beside an encoder, which has the others."""

PieceLoss = Callable[[Tensor, slice], tuple[Tensor, Tensor]]
"""Of the logits [n, vocabulary] of some rows, and which rows they are: what is minimised, summed over them (scalar,
with a graph), and its terms [k] to be shown."""


def forward_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch a model is called with; nothing is cached."""
    return {**{name: batch[name] for name in INPUTS if name in batch}, "use_cache": False}


def inputs_on(batch: Mapping[str, Any], device: torch.device) -> dict[str, Tensor]:
    """The model's inputs of a batch on a device."""
    return {name: batch[name].to(device) for name in INPUTS if name in batch}


def text_mask(batch: Mapping[str, Any]) -> Tensor:
    """Which tokens of `labels` [B, L] are no padding: those of the decoder, where there is an encoder."""
    mask: Tensor = batch.get("decoder_attention_mask", batch["attention_mask"])
    return mask


def loss_at_head(model: nn.Module, batch: Mapping[str, Any], loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Run a model up to its output embedding, and there take `loss_of` the last hidden states [B, L, d] instead.

    It is called where the output embedding would be, so that its weights are there also where they are sharded (FSDP2
    gathers them for that call), and passes through the model's output, whose gradient such a model waits for.

    Returns:
        What `loss_of` gives, a scalar tensor.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    given: list[Tensor] = []

    def in_place_of_logits(states: Tensor) -> Tensor:
        del head.forward
        given.append(loss_of(states))
        return given[0]

    head.forward = in_place_of_logits
    try:
        output = model(**forward_inputs(batch))
    finally:
        vars(head).pop("forward", None)
    # A family that scales or caps its logits has done it to the loss; what is left of that is the way of the gradient.
    return given[0] if output.logits is given[0] else given[0] + 0 * output.logits.sum()


def logits_of_rows(model: nn.Module, rows: Tensor) -> Tensor:
    """The logits [n, vocabulary] that a model makes of last hidden states [n, d], scaled and capped as its family does.

    To be called where the output embedding's weights are: inside of `loss_at_head`, or anywhere if nothing is sharded.
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    logits: Tensor = type(head).forward(head, rows)
    return _processed(model, logits)


def summed_over_rows(model: nn.Module, rows: Tensor, loss_of: PieceLoss) -> tuple[Tensor, Tensor]:
    """Sum a loss over rows [N, d] of last hidden states, with the logits of `LOSS_CHUNK` rows at once and never again.

    The gradients of a piece are taken while its logits are there, and kept in place of them: of the rows [N, d], and of
    the output embedding where it trains (as Liger, arXiv 2410.10989, section 3.2).

    Returns:
        The sum (scalar, with a graph), and the sums of its terms [k].
    """
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    total, terms = _SummedPieces.apply(model, loss_of, rows, *trained)
    return total, terms


class _SummedPieces(torch.autograd.Function):
    """See `summed_over_rows`."""

    @staticmethod
    def forward(
        ctx: Any, model: nn.Module, loss_of: PieceLoss, rows: Tensor, *trained: Tensor
    ) -> tuple[Tensor, Tensor]:
        differentiated = any(ctx.needs_input_grad)
        of_rows = torch.empty_like(rows)
        of_trained: list[Tensor] = []
        totals, terms = [], []
        for start in range(0, max(len(rows), 1), LOSS_CHUNK):
            span = slice(start, min(start + LOSS_CHUNK, len(rows)))
            with torch.set_grad_enabled(differentiated):
                leaf = rows[span].detach().requires_grad_(differentiated)
                total, parts = loss_of(logits_of_rows(model, leaf), span)
            if differentiated:
                piece, *weights = torch.autograd.grad(total, [leaf, *trained])
                of_rows[span] = piece
                of_trained = [a.add_(b) for a, b in zip(of_trained, weights, strict=True)] if of_trained else weights
            totals.append(total.detach())
            terms.append(parts.detach())
        ctx.save_for_backward(of_rows, *of_trained)
        ctx.set_materialize_grads(False)
        summed = torch.stack(terms).sum(0)
        ctx.mark_non_differentiable(summed)
        return torch.stack(totals).sum(), summed

    @staticmethod
    def backward(ctx: Any, of_total: Tensor | None, of_terms: Tensor | None) -> tuple[Tensor | None, ...]:
        if of_total is None:
            return (None,) * len(ctx.needs_input_grad)
        gradients = (gradient * of_total.to(gradient.dtype) for gradient in ctx.saved_tensors)
        return None, None, *gradients


def _processed(model: Any, logits: Tensor) -> Tensor:
    """What a family's own forward does to what its output embedding gives [n, vocabulary].

    It runs with a decoder and an output embedding that give what is there already. The embedding itself is not called:
    around a call FSDP2 would gather its weights and give them away again.
    """
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    head, decoder = model.get_output_embeddings(), decoder_of(model)
    name = next(name for name, module in model.named_modules() if module is head)
    owner, _, attribute = name.rpartition(".")
    holder = model.get_submodule(owner)
    states = _DecoderOutput(last_hidden_state=logits[None, :, :1])
    setattr(holder, attribute, _Given(logits.unsqueeze(0)))
    decoder.forward = lambda *_, **__: states
    try:
        output = type(model).forward(model, **_any_inputs(model, logits), use_cache=False)
    finally:
        del decoder.forward
        setattr(holder, attribute, head)
    processed: Tensor = output.logits.squeeze(0)
    return processed


def _any_inputs(model: Any, logits: Tensor) -> dict[str, Any]:
    """Inputs of one token, of which a model makes nothing where its decoder is not run; nor its encoder."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=logits.device)
    if not has_encoder(model.config):
        return {"input_ids": ids}
    return {"encoder_outputs": BaseModelOutput(last_hidden_state=logits[None, :1, :1]), "decoder_input_ids": ids}


@dataclass
class _DecoderOutput(ModelOutput):
    """All that models take from what a decoder gives."""

    last_hidden_state: Tensor | None = None
    past_key_values: Any = None
    hidden_states: Any = None
    attentions: Any = None
    router_logits: Any = None
    cross_attentions: Any = None


class _Given(nn.Module):
    """Gives a tensor whatever it is asked."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given

    def forward(self, _: Tensor) -> Tensor:
        return self.given
