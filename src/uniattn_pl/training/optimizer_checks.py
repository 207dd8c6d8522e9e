"""Whether the optimizer that is asked for can work where the fit runs, and has what it is told to update."""

from __future__ import annotations

import torch

from uniattn_pl.config import LoadedConfig
from uniattn_pl.config.yaml_documents import at
from uniattn_pl.errors import UserError
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.optimizer_memory import ADAMW_8BIT

EIGHT_BIT_DEVICES = ("cpu", "cuda", "xpu")  # for which bitsandbytes has kernels that update 8-bit states
W_C_RATE = "training.stage{}.w_c_learning_rate"


def check_optimizer(loaded: LoadedConfig, plan: LayerPlan | None, strategy: str, device: torch.device) -> None:
    """Check `training.optimizer` and the learning rates of W_c against what the config alone does not say.

    Args:
        plan: None: it is not chosen yet.
        strategy: single, ddp or fsdp, as `auto` has been resolved.
        device: where it runs.

    Raises:
        UserError: with each thing that does not fit.
    """
    training, problems = loaded.config.training, []
    if training.optimizer == ADAMW_8BIT:
        where = at(loaded.provenance["training.optimizer"])
        if strategy == "fsdp":
            problems.append(
                f"{where}training.optimizer: this model is trained in shards (training.strategy={training.strategy}), "
                "which bitsandbytes' kernels do not take (DTensor); use adamw or muon, or training.strategy=ddp."
            )
        if device.type not in EIGHT_BIT_DEVICES:
            problems.append(
                f"{where}training.optimizer: bitsandbytes updates states of 8 bits on {', '.join(EIGHT_BIT_DEVICES)}, "
                f"not on {device.type}; use adamw or muon."
            )
    without = plan is not None and not plan.compensated
    for number, stage in ((1, training.stage1), (2, training.stage2)):
        key = W_C_RATE.format(number)
        if without and stage.enabled and stage.w_c_learning_rate is not None:
            problems.append(f"{at(loaded.provenance[key])}{key}: no layer of this plan has a W_c; set it to null.")
    if problems:
        raise UserError(*problems)
