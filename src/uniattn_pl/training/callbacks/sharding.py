"""Which modules FSDP2 shards together, and in which precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from torch import nn

from uniattn_pl.families.inspection import attention_of, decoder_layers

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Sharding(pl.Callback):
    """Shards a decoder by layers; a module's `configure_model` asks it (`pl_module.sharding.shard(...)`).

    A unit is gathered as a whole before it computes and given back afterwards. Each decoder layer is one; so is
    each W_c in stage 1, where the rest of its layer is frozen and holds neither gradients nor optimizer state.
    The two embeddings are units where they are not tied: they are the largest weights of all.

    Args:
        stage: of training.
        precision: of the Trainer; bf16-mixed gathers and computes in bfloat16 and reduces gradients in float32.
        cpu_offload: shards stay in main memory between uses.
    """

    def __init__(self, stage: int, precision: str = "32-true", *, cpu_offload: bool = False) -> None:
        self.stage, self.precision, self.cpu_offload = stage, precision, cpu_offload

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        pl_module.sharding = self  # type: ignore[assignment]

    def shard(self, model: nn.Module, mesh: DeviceMesh) -> None:
        """Shard `model` in place over a mesh of one dimension; parameters become DTensors."""
        from torch.distributed.fsdp import fully_shard

        options = {"mesh": mesh, **self._options()}
        for unit in self._units(model):
            fully_shard(unit, **options)
        fully_shard(model, **options)

    def _units(self, model: Any) -> list[nn.Module]:
        """Innermost first."""
        units: list[nn.Module] = []
        for layer in decoder_layers(model):
            w_c = getattr(attention_of(layer), "w_c", None)
            if self.stage == 1 and w_c is not None:
                units.append(w_c)
            units.append(layer)
        into, out_of = model.get_input_embeddings(), model.get_output_embeddings()
        if into.weight is not out_of.weight:
            units += [into, out_of]
        return units

    def _options(self) -> dict[str, Any]:
        from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

        options: dict[str, Any] = {}
        if self.precision == "bf16-mixed":
            policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            options["mp_policy"] = policy
        if self.cpu_offload:
            options["offload_policy"] = CPUOffloadPolicy(pin_memory=torch.cuda.is_available())
        return options
