"""peft on converted models: low-rank updates of what the plan left, with every W_c trained in full."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.families.encoder_decoder import has_encoder, sees_images
from uniattn_pl.families.inspection import (
    FUSED,
    PROJECTIONS,
    attention_of,
    attentions_of,
    decoder_layers,
    decoder_of,
    output_projection,
)

if TYPE_CHECKING:
    from peft import LoraConfig, PeftConfig

OTHER_NAMES = (
    *("out_proj", "dense", "q", "k", "v", "o"),  # as BART, Phi and T5 call them
    *("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"),  # of a latent attention
)
ALL_LINEAR = "all-linear"  # peft's word for every linear layer but the output embedding


def lora_config(model: PreTrainedModel, *, rank: int = 16, refitted: Iterable[int] = (), **options: Any) -> LoraConfig:
    """The peft config for a model, stock or converted: its attention projections get adapters, its W_c are unfrozen.

    W_c is saved with the adapter (`modules_to_save`), so an adapter folder holds all that was trained.

    Args:
        model: as `get_peft_model` will be given it.
        rank: of the updates.
        refitted: layers whose W_o calibration has fitted together with W_c; it trains in full, like W_c.
        options: other fields of `peft.LoraConfig`; `target_modules` replaces the attention projections.

    Raises:
        UserError: the rank is below 1, or an update would change a weight that other modules have, too.

    Example:
        from peft import get_peft_model

        adapted = get_peft_model(model, uniattn_pl.lora_config(model, rank=16))
    """
    from peft import LoraConfig

    if rank < 1:
        raise UserError(f"the rank of a LoRA update must be at least 1, got {rank}.")
    attentions = attentions_of(model).values()
    present = {name for attention in attentions for name, _ in attention.named_children()}
    adapted = [name for name in (*PROJECTIONS, FUSED, *OTHER_NAMES) if name in present]
    whole = ["w_c"] if "w_c" in present else []
    outputs = _output_paths(model, refitted)
    defaults: dict[str, Any] = {
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": adapted,
        "modules_to_save": [*whole, *outputs] or None,
        "exclude_modules": [*outputs, *_projections_of_towers(model), *_stand_ins(model, adapted)] or None,
        "task_type": "SEQ_2_SEQ_LM" if has_encoder(model.config) else "CAUSAL_LM",
    }
    config = LoraConfig(**{**defaults, **options})
    check_untied(model, config)
    return config


def _stand_ins(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """What has the name of a projection and is not one any more (`modeling/attention/absent_parts.py`)."""
    return [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in names and not isinstance(module, nn.Linear)
    ]


def _output_paths(model: PreTrainedModel, layers: Iterable[int]) -> list[str]:
    """The W_o of some decoder layers, by their names in the model."""
    outputs = {id(output_projection(attention_of(decoder_layers(model)[index]))) for index in layers}
    return [name for name, module in model.named_modules() if id(module) in outputs]


def _projections_of_towers(model: PreTrainedModel) -> list[str]:
    """Projections of the same names in a tower for images, which is left as it is."""
    if not sees_images(model.config):
        return []
    of_text = {id(module) for module in decoder_of(model).modules()}
    return [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in (*PROJECTIONS, FUSED) and id(module) not in of_text
    ]


def check_target_modules(model: PreTrainedModel, target_modules: Sequence[str]) -> None:
    """Check `training.lora.target_modules` on a model, which needs no weights.

    Raises:
        UserError: a name is no projection of this model, or the projection's weight is that of another module, too.
    """
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in target_modules if name not in linear]
    if unknown:
        near, names = did_you_mean(unknown[0], linear), ", ".join(sorted(linear))
        raise UserError(f"training.lora.target_modules: the model has no '{unknown[0]}'.{near} It has {names}.")
    targets: dict[str, Any] = {"target_modules": list(target_modules)} if target_modules else {}
    try:
        lora_config(model, **targets)
    except UserError as error:
        raise UserError(*(f"training.lora.target_modules: {problem}" for problem in error.problems)) from error


def check_untied(model: nn.Module, config: PeftConfig) -> None:
    """Check that no weight which an adapter changes has a second name, as a tied output embedding has.

    Trained beside it the other name keeps its values, and merged it would change with it: the saved model would not be
    the one that was measured.

    Raises:
        UserError: naming both modules.
    """
    changed = set(_changed_weights(model, config))
    problems = []
    for names in tied_weights(model):
        for name in names:
            if name in changed:
                others = ", ".join(f"'{_module_of(other)}'" for other in names if other != name)
                problems.append(
                    f"an update of '{_module_of(name)}' would change {others} when it is merged, as they are one "
                    f"weight in this model (tied); leave '{_module_of(name)}' out, or train in full."
                )
    if problems:
        raise UserError(*problems)


def tied_weights(model: nn.Module) -> list[list[str]]:
    """The names of every parameter of a model that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _changed_weights(model: nn.Module, config: PeftConfig) -> Iterator[str]:
    """Names of the parameters that an adapter with this config changes or replaces; peft decides by suffixes."""
    from peft.tuners.tuners_utils import check_target_module_exists

    options = vars(config)
    whole, parameters = (tuple(options.get(key) or ()) for key in ("modules_to_save", "target_parameters"))
    targets = options.get("target_modules")
    every_linear = isinstance(targets, str) and targets.lower() == ALL_LINEAR
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    for name, module in model.named_modules(remove_duplicate=False):
        if name.endswith(whole):
            yield from (f"{name}.{inner}" for inner, _ in module.named_parameters(remove_duplicate=False))
        elif (
            isinstance(module, nn.Linear) and module is not head
            if every_linear
            else targets and check_target_module_exists(config, name)
        ):
            yield from (f"{name}.{inner}" for inner, _ in module.named_parameters(recurse=False))
    yield from (n for n, _ in model.named_parameters(remove_duplicate=False) if parameters and n.endswith(parameters))


def _module_of(parameter: str) -> str:
    return parameter.rpartition(".")[0]


@torch.no_grad()
def initialise_updates(model: nn.Module, seed: int) -> None:
    """Start every low-rank update at zero, A random as peft's are, the same on any number of ranks, sharded or not.

    The lengths that DoRA trains start as those of the rows of the weight.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".lora_A." not in name and ".lora_B." not in name:
            continue
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name:
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        value = value.to(parameter.device, parameter.dtype)
        if isinstance(parameter, DTensor):
            value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
        parameter.copy_(value)
    for module in model.modules():
        for length in getattr(module, "lora_magnitude_vector", {}).values():
            base: Any = module.get_base_layer()  # type: ignore[operator]
            if base.weight.is_floating_point():  # else peft has seen the weight in full
                length.weight.copy_(torch.linalg.vector_norm(base.weight, dim=1))
