"""How the ranks of a training stage divide the work and the model, as Lightning strategies."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.card_rates import USABLE_MEMORY
from uniattn_pl.resilience.cluster import COLLECTIVE_TIMEOUT, Cluster
from uniattn_pl.resilience.shard_reading import load_shards
from uniattn_pl.training.memory_estimate import stage_memory

# Sharded checkpoints keep what is neither weights nor optimizer state in this file, as Lightning does.
METADATA_FILE = "meta.pt"
_WHOLE = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def resolve_strategy(config: ExperimentConfig, cluster: Cluster, shape: ModelShape) -> str:
    """Return single, ddp or fsdp; `auto` shards only a model whose training state does not fit on each device."""
    if config.training.strategy != "auto":
        return config.training.strategy
    if cluster.world_size == 1:
        return "single"
    if cluster.device.type != "cuda":
        return "ddp"
    needed = stage_memory(config, LayerPlan.stock(shape), shape, stage=2, num_devices=1)
    total = torch.cuda.get_device_properties(cluster.device).total_memory
    return "ddp" if needed.total <= USABLE_MEMORY * total else "fsdp"


def build_strategy(name: str, config: ExperimentConfig, world_size: int) -> Strategy | str:
    """The strategy object of one Trainer; a Trainer cannot take over another's."""
    if name == "single":
        return "auto"
    if name == "ddp":
        return DDPStrategy(timeout=COLLECTIVE_TIMEOUT)
    return ShardedStrategy(
        world_size,
        cpu_offload=config.training.cpu_offload,
        sharded_checkpoints=config.training.checkpoint_format == "sharded",
    )


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks, with checkpoints that hold what trains and that another number of ranks can read.

    Args:
        world_size: ranks, over all of which weights are sharded.
        cpu_offload: shards live in main memory, so the model stays there.
        sharded_checkpoints: each rank writes its own part into a folder.
    """

    def __init__(self, world_size: int, *, cpu_offload: bool, sharded_checkpoints: bool) -> None:
        super().__init__(
            data_parallel_size=world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=sharded_checkpoints,
            timeout=COLLECTIVE_TIMEOUT,
        )
        self._cpu_offload, self._sharded = cpu_offload, sharded_checkpoints

    def model_to_device(self) -> None:
        """Move what is not sharded; offloaded shards stay in main memory."""
        if not self._cpu_offload:
            super().model_to_device()
            return
        for module in self.model.modules():  # type: ignore[union-attr]
            for name, buffer in module.named_buffers(recurse=False):
                persistent = name not in module._non_persistent_buffers_set
                module.register_buffer(name, buffer.to(self.root_device), persistent=persistent)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """What trains: frozen weights are in the folder the stage started from."""
        options = StateDictOptions(full_state_dict=not self._sharded, cpu_offload=True, ignore_frozen_params=True)
        return get_model_state_dict(self.model, options=options)  # type: ignore[arg-type]

    def load_checkpoint(self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None) -> Any:
        """Load either format, of any strategy and number of ranks, into the shards; returns the rest of it."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = self.load_weights(path)
        if path.is_dir():
            self._load_optimizer_shards(path)
            return checkpoint
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            named = self._by_name(optimizer, state)
            set_optimizer_state_dict(self.model, optimizer, optim_state_dict=named, options=_WHOLE)  # type: ignore[arg-type]
        return checkpoint

    def load_weights(self, path: Path) -> Any:
        """Load what trains from a checkpoint in either format into the shards; returns the rest of it."""
        model: Any = self.model
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # behind a forward without a backward, what is in no layer is still whole
        if not path.is_dir():
            # mapped: a rank reads only what it keeps
            checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
            set_model_state_dict(model, checkpoint["state_dict"], options=_WHOLE)
            return checkpoint
        trained = StateDictOptions(cpu_offload=True, ignore_frozen_params=True, strict=False)
        state: dict[str, Any] = {"state_dict": get_model_state_dict(model, options=trained)}
        load_shards(state, path)
        set_model_state_dict(model, state["state_dict"], options=trained)
        return torch.load(path / METADATA_FILE, map_location="cpu", weights_only=True)

    def _load_optimizer_shards(self, path: Path) -> None:
        model: Any = self.model
        for index, optimizer in enumerate(self.optimizers):
            key = f"optimizer_{index}"
            state = {key: get_optimizer_state_dict(model, optimizer, options=StateDictOptions(cpu_offload=True))}
            load_shards(state, path)
            set_optimizer_state_dict(model, optimizer, optim_state_dict=state[key])

    def _by_name(self, optimizer: Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
        """Key an optimizer's state by parameter names: numbers mean other parameters in other strategies, but
        all of them list what trains group by group, in the same order."""
        own = {id(p): name for name, p in self.model.named_parameters()}  # type: ignore[union-attr]
        names = [own[id(p)] for group in optimizer.param_groups for p in group["params"]]
        ids = [index for group in state["param_groups"] for index in group["params"]]
        name_of = dict(zip(ids, names, strict=True))
        groups = [{**group, "params": [name_of[i] for i in group["params"]]} for group in state["param_groups"]]
        return {"state": {name_of[i]: value for i, value in state["state"].items()}, "param_groups": groups}
