"""The model of a training stage: built from the folder of the phase before, saved into a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from uniattn_pl.calibration.weights import adjusts_output_projection
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.modeling.loading import load_folder
from uniattn_pl.modeling.lora import initialise_updates, lora_config
from uniattn_pl.modeling.sharded_loading import fill
from uniattn_pl.training.session import FitSession
from uniattn_pl.training.storage import phase_folder, save_model

ADAPTER = "adapter"


def build_model(session: FitSession, stage: int, source: Path) -> PreTrainedModel:
    """What a stage trains: with weights, or without where the strategy will shard them first."""
    model = session.skeleton(source) if session.strategy == "fsdp" else session.load(source)
    if session.config.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if stage == 2 and session.config.training.lora.enabled:
        return _with_updates(session, model, source)
    return model


def fill_shards(session: FitSession, model: nn.Module, source: Path) -> None:
    """Give a sharded skeleton its weights, in main memory where shards are offloaded."""
    fill(model, source, "cpu" if session.config.training.cpu_offload else session.device)
    initialise_updates(model, session.config.seed)


def save_result(session: FitSession, model: Any, folder: Path) -> None:
    """Write what a stage has trained as an ordinary model folder, low-rank updates merged; every rank calls this."""
    state: dict[str, Any] | None = None
    if session.strategy == "fsdp":
        adapted = hasattr(model, "peft_config")
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=adapted)
        state = get_model_state_dict(model, options=options)
    if not session.cluster.is_main:
        return
    if not hasattr(model, "peft_config"):
        save_model(folder, model, session.tokenizer, state)
        return
    adapter = session.folder / ADAPTER
    with phase_folder(adapter) as temporary:
        model.save_pretrained(temporary, **({} if state is None else {"state_dict": state}))
    save_model(folder, load_folder(adapter), session.tokenizer)


def _with_updates(session: FitSession, model: PreTrainedModel, source: Path) -> Any:
    """The model with low-rank updates to train, next to W_c and what calibration has fitted together with it."""
    from peft import get_peft_model

    options = session.config.training.lora
    _check_targets(options.target_modules, model)
    joint = session.config.calibration.initialiser == "joint_least_squares"
    refitted = [row.index for row in session.plan.rows if joint and row.compensated and adjusts_output_projection(row)]
    targets = {"target_modules": options.target_modules} if options.target_modules else {}
    config = lora_config(
        model,
        rank=options.rank,
        refitted=refitted,
        lora_alpha=2 * options.rank if options.alpha is None else options.alpha,
        lora_dropout=options.dropout,
        **targets,
    )
    model.name_or_path = str(source.resolve())  # where the adapter's config says its base is
    # in the precision of training: a sharded unit holds one dtype
    adapted = get_peft_model(model, config, autocast_adapter_dtype=False)
    if session.strategy != "fsdp":
        initialise_updates(adapted, session.config.seed)
    return adapted


def _check_targets(wanted: list[str], model: PreTrainedModel) -> None:
    """Raise UserError when a name of `training.lora.target_modules` is no projection of this model."""
    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    unknown = [name for name in wanted if name not in linear]
    if unknown:
        near = did_you_mean(unknown[0], linear)
        there = ", ".join(sorted(linear))
        raise UserError(f"training.lora.target_modules: the model has no '{unknown[0]}'.{near} It has {there}.")
