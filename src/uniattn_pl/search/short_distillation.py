"""A few dozen steps of a plan's fitted weights towards the original's next tokens: what training would make of it.

The order of plans after a fit need not be their order after training (KL-guided selection, arXiv 2512.20569).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.calibration.layers import Batch, WatchPoint, capture
from uniattn_pl.calibration.weights import adjusts_output_projection
from uniattn_pl.families.inspection import attention_of, decoder_layers, decoder_of, output_projection
from uniattn_pl.losses.divergence import TopLogits
from uniattn_pl.plan import LayerPlan
from uniattn_pl.search.score import divergence_pieces

LEARNING_RATE = 3e-4
WARM_UP = 5


def distil(
    model: PreTrainedModel,
    plan: LayerPlan,
    batches: Sequence[tuple[Batch, Sequence[TopLogits]]],
    *,
    steps: int,
) -> None:
    """Train W_c and W_o of the changed layers, in place, one batch a step in their order, again from the first.

    AdamW without decay, KL(original | model) on every token. Memory: the activations of one batch, the logits of a
    piece of it, and two moments of what trains.

    Args:
        model: a converted model under `plan`; its other weights, which the original may have too, stay as they are.
        batches: with what is kept of the original's outputs on each.
        steps: of the optimizer.
    """
    modules = _trained_modules(model, plan)
    if not modules or not batches:
        return
    with _only_these_train(model, modules) as trained, torch.enable_grad():
        optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, weight_decay=0.0)
        warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))
        for _, (batch, kept) in zip(range(steps), cycle(batches), strict=False):
            _accumulate(model, batch, kept)
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warm_up.step()


def _trained_modules(model: PreTrainedModel, plan: LayerPlan) -> list[nn.Module]:
    """W_c, and W_o where it takes part, of every layer that has a W_c."""
    modules: list[nn.Module] = []
    for row in plan.rows:
        attention = attention_of(decoder_layers(model)[row.index])
        modules += [attention.w_c] if row.compensated else []
        modules += [output_projection(attention)] if adjusts_output_projection(row) else []
    return modules


@contextmanager
def _only_these_train(model: PreTrainedModel, modules: Sequence[nn.Module]) -> Iterator[list[nn.Parameter]]:
    """Their parameters, as copies in float32 that the model uses meanwhile; in the end it has their values as before.

    The model's other parameters are the original's, so they train again afterwards if they did.
    """
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(requires_grad=False)
    dtypes = _replace(modules, lambda parameter: nn.Parameter(parameter.detach().to(torch.float32, copy=True)))
    try:
        yield [parameter for module in modules for parameter in module.parameters()]
    finally:
        given = iter(dtypes)
        _replace(modules, lambda parameter: nn.Parameter(parameter.detach().to(next(given)), requires_grad=False))
        for parameter in training:
            parameter.requires_grad_()


def _replace(modules: Sequence[nn.Module], new: Callable[[nn.Parameter], nn.Parameter]) -> list[torch.dtype]:
    """Put a new parameter in place of each; returns the former ones' dtypes."""
    owners = [owner for module in modules for owner in module.modules()]
    places = [(owner, name) for owner in owners for name in owner._parameters if owner._parameters[name] is not None]
    dtypes = [getattr(owner, name).dtype for owner, name in places]
    for owner, name in places:
        setattr(owner, name, new(getattr(owner, name)))
    return dtypes


def _accumulate(model: PreTrainedModel, batch: Batch, kept: Sequence[TopLogits]) -> None:
    """Add the gradient of the mean divergence of one batch; logits and their gradients piece by piece."""
    seen: dict[str, torch.Tensor] = {}
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mixed = torch.autocast(model.device.type, model.dtype, enabled=model.dtype != torch.float32)
    with mixed:
        with capture(WatchPoint(decoder_layers(model)[-1], leaving=True), seen, "last", stop=True):
            decoder_of(model)(**inputs, use_cache=False)
        last = seen["last"].detach().requires_grad_()
        for piece in divergence_pieces(model, batch, last, kept):
            (piece / batch["attention_mask"].sum()).backward()
    seen["last"].backward(last.grad)
