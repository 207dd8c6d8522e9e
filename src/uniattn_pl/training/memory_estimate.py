"""What the stages of an experiment take on each device, from its config: no weights are loaded."""

from __future__ import annotations

from dataclasses import replace

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.distillation_section import TermWeights
from uniattn_pl.config.sections.dpo_section import DPO
from uniattn_pl.plan import LayerPlan, ModelShape
from uniattn_pl.plan.optimizer_memory import ADAMW_8BIT
from uniattn_pl.plan.roles import MAP
from uniattn_pl.plan.teacher_memory import compared_bytes, compared_map_bytes, teacher_bytes
from uniattn_pl.plan.training_memory import TrainingMemory, training_memory

MODEL_FRACTION = 0.6  # of a device's memory, what a model in full may take; activations and statistics need the rest
WEIGHT_DTYPES = {"32-true": "float32", "bf16-true": "bfloat16", "bf16-mixed": "float32", "16-mixed": "float32"}
"""Precision -> dtype of the weights; `auto` keeps the model's own. Mixed precision needs float32 master weights."""


def stage_memory(
    config: ExperimentConfig, plan: LayerPlan, shape: ModelShape, *, stage: int, num_devices: int
) -> TrainingMemory:
    """The estimate for one stage as configured, on each of `num_devices` over which weights are sharded (fsdp).

    Where the optimizer takes no shards, each device holds everything (ddp).
    """
    from uniattn_pl.losses.map_divergence import ROWS
    from uniattn_pl.losses.row_logits import LOSS_CHUNK
    from uniattn_pl.modeling.loading.dtypes import resolve_dtype

    training = config.training
    num_devices = 1 if training.optimizer == ADAMW_8BIT else num_devices
    weight_bytes = resolve_dtype(WEIGHT_DTYPES.get(training.precision, config.model.dtype)).itemsize
    frozen_bytes = 2 if training.precision == "bf16-mixed" and num_devices == 1 and _in_bfloat16(config) else None
    distills = learns_from_teacher(config, stage)
    trains_maps = training.stage1.enabled and learns_from_maps(config, 1)
    quantized = training.lora.enabled and training.lora.quantization is not None
    in_pairs = stage == 2 and training.objective == DPO
    activation_bytes = 2 if training.precision.endswith("-mixed") else weight_bytes
    memory = training_memory(
        plan,
        shape,
        stage=stage,
        micro_batch_size=training.micro_batch_size * (2 if in_pairs else 1),
        length=config.data.max_length,
        weight_bytes=weight_bytes,
        activation_bytes=activation_bytes,
        gradient_checkpointing=training.gradient_checkpointing,
        loss_chunk=LOSS_CHUNK if training.chunked_loss or distills or in_pairs else None,
        num_devices=num_devices,
        lora_rank=training.lora.rank if training.lora.enabled else None,
        frozen_bytes=frozen_bytes,
        quantized=quantized,
        dora=training.lora.dora,
        trains_maps=trains_maps,
        optimizer=training.optimizer,
    )
    if not distills:
        return memory
    weights = 0
    if not training.distillation.cache:  # whose teacher runs for rows that nobody has asked it for
        weights = teacher_bytes(
            plan,
            shape,
            whole=stage == 2 and (quantized or not training.lora.enabled),  # nothing is in common with 4 bits
            refitted=config.calibration.initialiser == "joint_least_squares",
            weight_bytes=weight_bytes,
            frozen_bytes=frozen_bytes,
            num_devices=num_devices,
            trained_sources=plan.sources(MAP) if trains_maps else (),
        )
    compared = compared_bytes(shape, min(LOSS_CHUNK, training.micro_batch_size * config.data.max_length))
    if learns_from_maps(config, stage):
        sizes = {"micro_batch_size": training.micro_batch_size, "length": config.data.max_length}
        compared += compared_map_bytes(plan, shape, **sizes, rows=ROWS, activation_bytes=activation_bytes)
    return replace(memory, teacher=weights + compared)


def learns_from_teacher(config: ExperimentConfig, stage: int) -> bool:
    """Whether a stage has a teacher."""
    return config.training.distillation.teacher is not None and _weights(config, stage).needs_teacher


def learns_from_maps(config: ExperimentConfig, stage: int) -> bool:
    """Whether a stage compares the attention maps of sources with a teacher's."""
    return learns_from_teacher(config, stage) and _weights(config, stage).maps > 0


def _weights(config: ExperimentConfig, stage: int) -> TermWeights:
    weights: TermWeights = getattr(config.training.distillation, f"stage{stage}")
    return weights


def _in_bfloat16(config: ExperimentConfig) -> bool:
    """Whether the model's files are taken to be in bfloat16, which `frozen_weights.halve_frozen` keeps as they are."""
    from uniattn_pl.modeling.loading.dtypes import resolve_dtype

    return resolve_dtype(config.model.dtype).itemsize == 2


def estimated_peak_memory(config: ExperimentConfig, plan: LayerPlan, shape: ModelShape) -> int | None:
    """Bytes per device of the larger of the stages that are enabled; None when nothing is trained.

    Devices that are only known where it runs count as one.
    """
    training, trainer = config.training, config.trainer
    sharded = training.strategy == "fsdp" and isinstance(trainer.devices, int) and trainer.devices > 0
    num_devices = int(trainer.devices) * trainer.num_nodes if sharded else 1
    enabled = [number for number, stage in ((1, training.stage1), (2, training.stage2)) if stage.enabled]
    totals = (stage_memory(config, plan, shape, stage=stage, num_devices=num_devices).total for stage in enabled)
    return max(totals, default=None)
