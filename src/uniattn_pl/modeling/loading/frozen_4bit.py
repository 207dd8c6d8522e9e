"""Frozen matrices in 4 bits under low-rank updates (QLoRA, arXiv:2305.14314): to train on, and rounded as they were.

NF4 in blocks of 64 weights, whose scales have 8 bits in blocks of 256: 4.13 bits a weight.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import has_encoder
from uniattn_pl.families.inspection import decoder_of
from uniattn_pl.file_contents import read_json_object
from uniattn_pl.files import atomic_file
from uniattn_pl.modeling.loading.quantization import QUANTIZATIONS, no_such_quantization, quiet_bitsandbytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FOUR_BITS = "4bit"
FILE = "base_quantization.json"  # in an adapter's folder: its base was rounded, and which matrices were not


@torch.no_grad()
def freeze_in_4bit(
    model: PreTrainedModel, kept: Collection[str], *, device: torch.device, computes_in: torch.dtype
) -> int:
    """Put 4 bits in the place of the matrices of a model's layers, one by one onto `device`; returns how many weights.

    Args:
        model: in main memory or on the device, before peft wraps it, which will find them by their class.
        kept: ends of names of modules that stay, for instance because they train.
        device: where they are put, and will compute.
        computes_in: dtype in which they are multiplied with hidden states.
    """
    quiet_bitsandbytes()
    from bitsandbytes.nn.modules import Params4bit

    from uniattn_pl.modeling.loading.linear_4bit import FrozenLinear4bit

    weights = 0
    for name, linear in list(_matrices(model, kept)):
        with torch.device("meta"):
            new = FrozenLinear4bit(
                linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=computes_in
            )
        packed: Any = Params4bit(linear.weight.data, requires_grad=False, module=new, **_format())
        new.weight = packed.to(device)
        if linear.bias is not None:
            new.bias = nn.Parameter(linear.bias.data.to(device), requires_grad=False)
        model.set_submodule(name, new)
        weights += linear.weight.numel()
    vars(model)["is_loaded_in_4bit"] = True  # peft asks for it
    return weights


@torch.no_grad()
def round_to_4bit(model: PreTrainedModel, kept: Collection[str], *, device: torch.device | None = None) -> None:
    """Give the matrices that `freeze_in_4bit` would replace the values that they would have there.

    Args:
        device: where they are rounded, one by one; default: where they are.
    """
    quiet_bitsandbytes()
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for _, linear in _matrices(model, kept):
        weight: Tensor = linear.weight.data
        packed, state = quantize_4bit(weight.to(device or weight.device).contiguous(), **_format())
        weight.copy_(dequantize_4bit(packed, state))


def check_matrices(model: PreTrainedModel) -> None:
    """Check, without weights, that there is something to keep in 4 bits. Raises UserError if not."""
    if next(_matrices(model, ()), None) is None:
        raise UserError(
            f"training.lora.quantization: the layers of a {model.config.model_type} model have no linear modules that "
            "bitsandbytes could keep in 4 bits; set it to null."
        )


def record_rounding(adapter: Path, kept: Collection[str]) -> None:
    """Write down in an adapter's folder that its base was in 4 bits."""
    with atomic_file(adapter / FILE) as file:
        file.write(json.dumps({"quantization": FOUR_BITS, "kept": sorted(kept)}, indent=2).encode())


def recorded_rounding(adapter: Path) -> list[str] | None:
    """What of an adapter's base was kept as it is when the rest was rounded to 4 bits; None: all of it was.

    Raises:
        UserError: the file is none of `record_rounding`.
    """
    file = adapter / FILE
    if not file.exists():
        return None
    recorded = read_json_object(file)
    name, kept = recorded.get("quantization"), recorded.get("kept")
    if name != FOUR_BITS:
        known = f"'{name}' is not for training." if name in QUANTIZATIONS else no_such_quantization(str(name))
        raise UserError(f"'{file}': {known}")
    if not isinstance(kept, list) or not all(isinstance(part, str) and part for part in kept):
        raise UserError(f"'{file}': kept must be a list of names of modules; got {kept!r}.")
    return kept


def _matrices(model: PreTrainedModel, kept: Collection[str]) -> Iterator[tuple[str, nn.Linear]]:
    """The matrices of a model's layers, by name: no embedding, no head, no tower for images.

    Nor those that transformers itself would not quantise, T5's `wo` among them, which is asked for a dtype; nor a
    recurrence's, whose fused kernels are handed the weights themselves.
    """
    inside: Any = model
    kept = {*kept, *(inside._keep_in_fp32_modules or ())}
    recurrences = [part for part in model.modules() if any(isinstance(child, nn.Conv1d) for child in part.children())]
    outside = [*(module for part in recurrences for module in part.modules()), inside.get_output_embeddings()]
    stacks = [decoder_of(model), *([inside.get_encoder()] if has_encoder(model.config) else [])]
    within = {id(module) for stack in stacks for module in stack.modules()} - {id(module) for module in outside}
    for name, module in model.named_modules():
        if type(module) is nn.Linear and id(module) in within and not _ends(name, kept):
            yield name, module


def _ends(name: str, kept: Collection[str]) -> bool:
    """Whether a module has one of these names, or is within one that has."""
    return any(f".{name}.".find(f".{part}.") >= 0 for part in kept)


def _format() -> dict[str, Any]:
    return {"quant_type": "nf4", "blocksize": 64, "compress_statistics": True}
