"""A model folder into a sharded model, each rank reading only its own part of every weight."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from uniattn_pl.families.encoder_decoder import auto_model
from uniattn_pl.modeling.conversion.auto_classes import register_type_of
from uniattn_pl.modeling.length_rotations import forget_lengths

# What peft puts around a module's own name.
_WRAPPERS = (".base_layer", ".original_module", ".modules_to_save.default")


def skeleton(folder: Path, *, dtype: torch.dtype, attn_implementation: str) -> PreTrainedModel:
    """The model of a folder without weights: parameters on the meta device, buffers (rotary frequencies) computed."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    register_type_of(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = auto_model(config).from_config(config, dtype=dtype, attn_implementation=attn_implementation)
    model.tie_weights()
    forget_lengths(model)
    return model.eval()


def fill_weights(model: nn.Module, folder: Path, device: torch.device | str) -> None:
    """Give a sharded skeleton memory on `device` and its weights from the folder's safetensors files.

    What peft has added is left uninitialised.

    Raises:
        ValueError: the files lack a weight.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    # not `to_empty`, which would wipe the buffers too
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    reader = HuggingFaceStorageReader(str(folder))
    stored = reader.read_metadata().state_dict_metadata
    by_copy: dict[str, dict[str, Any]] = {}
    missing = []
    # tied weights are one parameter, listed once
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            continue
        key = file_key(name)
        if key in stored:
            by_copy.setdefault(_copy_of(name), {})[key] = parameter.detach()
        else:
            missing.append(key)
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}.")
    for state in by_copy.values():
        load(state, storage_reader=HuggingFaceStorageReader(str(folder)))


def file_key(name: str) -> str:
    """A parameter's name in the folder of the model, whatever peft calls it now."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name.removeprefix("base_model.model.")


def _copy_of(name: str) -> str:
    """Which of the copies that peft keeps of one weight this is: a state dict names each weight once."""
    return "trained" if ".modules_to_save." in name else "own"
