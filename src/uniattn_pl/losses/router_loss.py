"""The loss that keeps routers from favouring a few experts: the family's own function, on the tokens that are rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from uniattn_pl.errors import UserError
from uniattn_pl.families.inspection import attentions_of, family_module
from uniattn_pl.families.routed_experts import routed_experts

FUNCTION = "load_balancing_loss_func"
COEFFICIENT = "router_aux_loss_coef"


def adds_router_loss(model: Any, asked: bool | None) -> bool:
    """Whether training adds this loss: as asked, or else as transformers would, by the config's `output_router_logits`.

    Raises:
        UserError: it was asked for, and the model's family has none.
    """
    wanted = getattr(model.config, "output_router_logits", False) if asked is None else asked
    if not wanted:
        return False
    has_function = hasattr(family_module(next(iter(attentions_of(model).values()))), FUNCTION)
    has_any = has_function and hasattr(model.config, COEFFICIENT) and next(routed_experts(model), None) is not None
    if asked and not has_any:
        raise UserError(
            f"training.router_loss is true, but a model of type '{model.config.model_type}' has no such loss in "
            "transformers; set it to null."
        )
    return has_any


@contextmanager
def router_logits_of(model: nn.Module, *, wanted: bool) -> Iterator[list[Tensor]]:
    """Within, a forward leaves its routers' logits, [B * L, E] by layer that has experts, in the list, if `wanted`."""
    seen: list[Tensor] = []
    if not wanted:
        yield seen
        return

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_router_logits": True}

    def keep(_: nn.Module, args: Any, output: Any) -> None:
        seen.extend(output.router_logits)

    handles = [model.register_forward_pre_hook(ask, with_kwargs=True), model.register_forward_hook(keep)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def router_loss(model: Any, logits: list[Tensor], batch: Mapping[str, Any]) -> Tensor:
    """The load-balancing loss of one forward, without its coefficient (scalar tensor with a graph).

    Padding does not count: where the batch has no attention mask, for its rows are packed, `row_mask` tells it.
    """
    function = getattr(family_module(next(iter(attentions_of(model).values()))), FUNCTION)
    mask = batch.get("row_mask", batch.get("attention_mask"))
    loss: Tensor = function(tuple(logits), model.num_experts, model.num_experts_per_tok, mask)
    return loss


def coefficient(model: Any) -> float:
    """What the loss is multiplied by before it is added."""
    return float(getattr(model.config, COEFFICIENT))
