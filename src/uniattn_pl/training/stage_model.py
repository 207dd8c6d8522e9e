"""The model of a training stage: built from the folder of the phase before, saved into a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from uniattn_pl.calibration.weights import adjusts_output_projection
from uniattn_pl.modeling.loading.adapter_folder import merged
from uniattn_pl.modeling.loading.frozen_4bit import freeze_in_4bit, record_rounding
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.modeling.loading.sharded_weights import fill_weights
from uniattn_pl.modeling.lora import initialise_updates, lora_config
from uniattn_pl.plan import LayerPlan
from uniattn_pl.resilience.model_folders import phase_folder, save_model
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_models import FitModels

ADAPTER = "adapter"
AUTOCAST_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def build_model(
    stage: int, experiment: Experiment, plan: LayerPlan, models: FitModels, source: Path
) -> PreTrainedModel:
    """What a stage trains: with weights, or without where the strategy will shard them first."""
    model = models.skeleton(source) if fills_shards(stage, experiment) else models.load(source)
    training = experiment.config.training
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if stage == 2 and training.lora.enabled:
        return _with_updates(experiment, plan, models, model, source)
    return model


def fills_shards(stage: int, experiment: Experiment) -> bool:
    """Whether a model gets its weights when it is sharded already: matrices in 4 bits are made of whole ones."""
    quantised = stage == 2 and is_quantised(experiment)
    return experiment.strategy == "fsdp" and not quantised


def is_quantised(experiment: Experiment) -> bool:
    """Whether stage 2 trains updates of matrices in 4 bits."""
    lora = experiment.config.training.lora
    return lora.enabled and lora.quantization is not None


def fill_shards(experiment: Experiment, models: FitModels, model: nn.Module, source: Path) -> None:
    """Give a sharded skeleton its weights, in main memory where shards are offloaded."""
    fill_weights(model, source, "cpu" if experiment.config.training.cpu_offload else models.device)
    initialise_updates(model, experiment.config.seed)


def save_result(
    experiment: Experiment, models: FitModels, model: Any, source: Path, folder: Path, *, is_main: bool
) -> None:
    """Write what a stage has trained as an ordinary model folder, low-rank updates merged; every rank calls this.

    Args:
        source: the model folder that it has started from.
    """
    state: dict[str, Any] | None = None
    if experiment.strategy == "fsdp":
        adapted = hasattr(model, "peft_config")
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted)
        state = get_model_state_dict(model, options=options)
    if not is_main:
        return
    if not hasattr(model, "peft_config"):
        save_model(folder, model, experiment.tokenizer, state)
        return
    adapter = experiment.folder / ADAPTER
    with phase_folder(adapter) as temporary:
        model.save_pretrained(temporary, **({} if state is None else {"state_dict": state}))
        experiment.tokenizer.save_pretrained(temporary)
        if is_quantised(experiment):
            record_rounding(temporary, model.peft_config["default"].modules_to_save or ())
    save_model(folder, merged(adapter, load_folder(source), device=models.device), experiment.tokenizer)


def _with_updates(
    experiment: Experiment, plan: LayerPlan, models: FitModels, model: PreTrainedModel, source: Path
) -> Any:
    """The model with low-rank updates to train, next to W_c and what calibration has fitted together with it."""
    from peft import get_peft_model

    options = experiment.config.training.lora
    joint = experiment.config.calibration.initialiser == "joint_least_squares"
    refitted = [row.index for row in plan.rows if joint and row.compensated and adjusts_output_projection(row)]
    targets = {"target_modules": options.target_modules} if options.target_modules else {}
    config = lora_config(
        model,
        rank=options.rank,
        refitted=refitted,
        lora_alpha=2 * options.rank if options.alpha is None else options.alpha,
        lora_dropout=options.dropout,
        use_dora=options.dora,
        **targets,
    )
    model.name_or_path = str(source.resolve())  # where the adapter's config says its base is
    dtype = model.dtype
    if is_quantised(experiment):
        computes_in = AUTOCAST_DTYPES.get(experiment.precision, dtype)
        freeze_in_4bit(model, config.modules_to_save or (), device=models.device, computes_in=computes_in)
    # in the precision of training: a sharded unit holds one dtype
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in adapted.named_parameters():
        if ".lora_" in name and parameter.dtype != dtype:  # beside matrices in 4 bits
            parameter.data = parameter.data.to(dtype)
    if not fills_shards(2, experiment):
        initialise_updates(adapted, experiment.config.seed)
    return adapted
