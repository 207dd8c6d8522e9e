"""The optimizer of a stage: which parameters each of its groups holds, and how they are updated.

Without `w_c_learning_rate` AdamW has one group, in the order of the model, as it always had: a group more would be
another checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from uniattn_pl.config.sections.training_section import StageConfig
from uniattn_pl.modeling.attention.compensation_layer import COMPENSATION
from uniattn_pl.modeling.loading.quantization import quiet_bitsandbytes
from uniattn_pl.plan.optimizer_memory import ADAMW, ADAMW_8BIT, MUON

# By which a group's learning rate is logged; without it under the name of the stage's.
RATE_NAME, LEARNING_RATE, W_C_LEARNING_RATE = "rate_name", "learning_rate", "w_c_learning_rate"
BY_MUON = "by_muon"
# Muon's updates have the size of AdamW's, so that one learning rate serves both (arXiv:2502.16982, section 2.2).
LIKE_ADAMW = "match_rms_adamw"
Group = dict[str, Any]


def build_optimizer(
    model: nn.Module, options: StageConfig, name: str = ADAMW, *, scaled: bool = False
) -> torch.optim.Optimizer:
    """The optimizer over what trains of a model.

    Args:
        model: whose parameters with `requires_grad` train, sharded (FSDP2) or not.
        options: learning rates and weight decay.
        name: one of `OPTIMIZERS`.
        scaled: gradients go through a GradScaler, which a fused AdamW would unscale too late for clipping.
    """
    # fused is 2-4 times faster than the other implementations, on CPUs too
    fused = None if scaled else True
    if name == MUON:
        by_muon = _groups(model, options, {BY_MUON: _matrices(model)})
        return MuonWithAdamW(by_muon, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)
    if name == ADAMW_8BIT:
        quiet_bitsandbytes()
        from uniattn_pl.training.eight_bit_adamw import STATE_BITS, EightBitAdamW

        tables = _tables(model)
        wide = _groups(model, options, {STATE_BITS: lambda p: 32 if id(p) in tables else 8})
        return EightBitAdamW(wide, lr=options.learning_rate, weight_decay=options.weight_decay)
    groups = _groups(model, options, {})
    return AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)


class MuonWithAdamW(Optimizer):
    """Muon for the groups that are marked `by_muon`, AdamW for the others, as one optimizer with one state.

    Args:
        groups: of parameters; those by Muon hold matrices alone.
        lr: of groups without one of their own.
        weight_decay: decoupled, of all.
        fused: of AdamW.
    """

    def __init__(self, groups: list[Group], *, lr: float, weight_decay: float, fused: bool | None) -> None:
        marked: tuple[list[Group], list[Group]] = ([], [])
        for group in groups:
            marked[0 if group[BY_MUON] else 1].append(group)
        self._parts: dict[bool, Optimizer] = {}
        if marked[0]:
            self._parts[True] = Muon(marked[0], lr=lr, weight_decay=weight_decay, adjust_lr_fn=LIKE_ADAMW)
        if marked[1]:
            self._parts[False] = AdamW(marked[1], lr=lr, weight_decay=weight_decay, fused=fused)
        super().__init__([group for part in self._parts.values() for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update all groups; `closure` computes the loss and the gradients, before."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for by_muon, part in self._parts.items():
            # loading a state has replaced both
            part.param_groups = [group for group in self.param_groups if group[BY_MUON] == by_muon]
            part.state = self.state
            part.step()
        return loss


def _groups(model: nn.Module, options: StageConfig, marks: dict[str, Callable[[nn.Parameter], Any]]) -> list[Group]:
    """What trains, in the order of the model, apart by the values of marks and by learning rate; W_c's last."""
    groups: dict[tuple[Any, ...], Group] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = {key: mark(parameter) for key, mark in marks.items()}
        if options.w_c_learning_rate is not None and COMPENSATION in name:
            found |= {"lr": options.w_c_learning_rate, RATE_NAME: W_C_LEARNING_RATE}
        groups.setdefault(tuple(found.items()), {**found, "params": []})["params"].append(parameter)
    return sorted(groups.values(), key=lambda group: RATE_NAME in group)


def _matrices(model: nn.Module) -> Callable[[nn.Parameter], bool]:
    """Whether a parameter is a matrix by which hidden states are multiplied: no table, vector or stack of experts."""
    tables = _tables(model)
    return lambda parameter: parameter.ndim == 2 and id(parameter) not in tables


def _tables(model: nn.Module) -> set[int]:
    """The embeddings of a model, its output embedding among them, by identity."""
    found = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    output_embeddings: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = output_embeddings()
    return found if head is None else found | {id(head.weight)}
