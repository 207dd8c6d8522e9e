"""Which attention kernels a benchmark measures: those asked for, or every one that is here."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from uniattn_pl.config.sections.measuring_sections import EVERY_KERNEL
from uniattn_pl.display.notices import tell_once
from uniattn_pl.errors import UserError
from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.kernels.kernel_presence import kernel_problem
from uniattn_pl.kernels.stock import FLEX, SDPA


def measured_backends(model: PreTrainedModel, asked: Sequence[str]) -> list[str]:
    """The kernels of bench.backends; `installed` stands for every one that this machine and this model have.

    Which these are, and why others are not, is said once.

    Raises:
        UserError: a kernel that is asked for by name is not here, with the reasons of all of them.
    """
    problems = {name: problem for name in ATTENTION_BACKENDS if (problem := _backend_problem(model, name)) is not None}
    here = [name for name in ATTENTION_BACKENDS if name not in problems]
    missing = [problems[name] for name in asked if name in problems]
    if missing:
        raise UserError(
            *(f"bench.backends: {problem} Attention kernels here: {', '.join(here)}." for problem in missing)
        )
    if EVERY_KERNEL not in asked:
        return sorted(set(asked))
    tell_once(" ".join([f"attention kernels here: {', '.join(here)}.", *problems.values()]))
    return sorted(here)


def has_sdpa(model: PreTrainedModel) -> bool:
    """Soft-capped attention has no fused kernel."""
    return model._supports_sdpa and getattr(model.config, "attn_logit_softcapping", None) is None


def _backend_problem(model: PreTrainedModel, name: str) -> str | None:
    """Why a kernel cannot be measured on this model, on its device and in its dtype, as one sentence."""
    supported = {SDPA: has_sdpa(model), FLEX: model._supports_flex_attn}.get(name, True)
    if name.startswith("flash"):
        supported = model._supports_flash_attn
    if not supported:
        return f"this {model.config.model_type} model has no {name} kernel."
    return kernel_problem(name, device=model.device, dtype=model.dtype)
