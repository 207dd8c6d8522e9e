"""The model of a training stage: built from the folder of the phase before, saved into a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedModel

from uniattn_pl.calibration.weights import adjusts_output_projection
from uniattn_pl.modeling.loading.pretrained import load_folder
from uniattn_pl.modeling.loading.sharded_weights import fill
from uniattn_pl.modeling.lora import initialise_updates, lora_config
from uniattn_pl.resilience.model_folders import phase_folder, save_model
from uniattn_pl.training.session import FitSession

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
