"""`training`: the two stages."""

from __future__ import annotations

from dataclasses import dataclass, field

from uniattn_pl.config.sections.distillation_section import DistillationConfig
from uniattn_pl.config.sections.dpo_section import OBJECTIVES, SFT, DpoConfig
from uniattn_pl.config.sections.limits import LARGEST_BATCH
from uniattn_pl.options import option
from uniattn_pl.plan.optimizer_memory import ADAMW, ADAMW_8BIT, MUON

PRECISIONS = ("auto", "32-true", "bf16-mixed", "bf16-true", "16-mixed")
STRATEGIES = {
    "auto": "one device: single; several: ddp where a full copy of the training state fits on each, else fsdp",
    "single": "one device",
    "ddp": "every device holds the whole model",
    "fsdp": "weights, gradients and optimizer state are sharded over all devices (FSDP2)",
}
OPTIMIZERS = {
    ADAMW: "AdamW, fused: two states of each weight, in its dtype",
    ADAMW_8BIT: "AdamW whose states have 8 bits (bitsandbytes), those of embeddings 32",
    MUON: "Muon, one state, for matrices; AdamW for embeddings, the head, norms and vectors",
}
TRAINING_LOSS, HELD_OUT_LOSS = "training_loss", "held_out_loss"
MONITORS = {
    TRAINING_LOSS: "the moving average of the training loss, at every step",
    HELD_OUT_LOSS: "the held-out loss (of dpo that of preferences), whenever it is measured",
}
LAST, BEST = "last", "best"
KEPT_WEIGHTS = {
    LAST: "those behind its last step",
    BEST: "those of the lowest held-out loss that was measured in it",
}
CHECKPOINT_FORMATS = {
    "full": "one file that any strategy reads, gathered on rank 0",
    "sharded": "a folder in which each rank writes its own part; fsdp only",
}


def _of(choices: dict[str, str]) -> str:
    """Choices for a help text."""
    return "; ".join(f"{name}: {text}" for name, text in choices.items())


@dataclass
class StageConfig:
    """One stage of training (stage 1: only W_c; stage 2: everything)."""

    enabled: bool = option(True, "run this stage")
    learning_rate: float = option(2e-5, "peak learning rate", minimum=0.0)
    w_c_learning_rate: float | None = option(None, "of W_c; default: learning_rate as well", minimum=0.0)
    weight_decay: float = option(0.0, "decoupled weight decay", minimum=0.0)
    max_epochs: int = option(1, "epochs over the training rows", minimum=1)
    max_steps: int | None = option(None, "optimizer steps at most; default: all of max_epochs", minimum=1)
    warmup_ratio: float = option(0.03, "fraction of the stage's steps with a linear warm-up", minimum=0.0)
    schedule: str = option("cosine", "decay after warm-up", allowed=("cosine", "linear", "constant"))


@dataclass
class EarlyStopConfig:
    """When a stage ends before its steps are done: a loss stops falling (paper Algorithm 1: stage 1, its average)."""

    enabled: bool = option(True, "let stages end early")
    stages: list[int] = option([1], "which of the two may", minimum=1, maximum=2)
    monitor: str = option(TRAINING_LOSS, f"what is watched: {_of(MONITORS)}", allowed=tuple(MONITORS))
    decay: float = option(0.9, "decay of the moving average of the training loss", minimum=0.0)
    patience: int = option(20, "steps, or measurements of the held-out loss, without improvement", minimum=1)
    min_delta: float = option(1e-3, "smallest improvement that counts", minimum=0.0)


@dataclass
class LoraConfig:
    """Stage 2 as low-rank updates (peft) instead of a full fine-tune; W_c and a re-fitted W_o train in full."""

    enabled: bool = option(False, "train low-rank updates in stage 2; the final model has them merged")
    rank: int = option(16, "rank of the updates", minimum=1)
    alpha: float | None = option(None, "scale, divided by the rank; default: twice the rank", minimum=0.0)
    dropout: float = option(0.0, "dropout in front of the updates", minimum=0.0)
    dora: bool = option(False, "train the length of each row of a weight apart from its direction (DoRA)")
    quantization: str | None = option(
        None, "keep what does not train in 4 bits (QLoRA); null: in the precision of training", allowed=("4bit",)
    )
    target_modules: list[str] = option([], "projections that get updates; default: those of the attention")


@dataclass
class TrainingConfig:
    """The two-stage post-training."""

    objective: str = option(
        SFT,
        "what stage 2 learns; " + "; ".join(f"{name}: {text}" for name, text in OBJECTIVES.items()),
        allowed=tuple(OBJECTIVES),
    )
    batch_size: int = option(
        48,
        "sequences (of dpo: pairs) per optimizer step, over all devices (paper Table 4: 48)",
        minimum=1,
        maximum=LARGEST_BATCH,
    )
    micro_batch_size: int = option(
        4, "sequences (of dpo: pairs) per forward on one device", minimum=1, maximum=LARGEST_BATCH
    )
    precision: str = option("auto", "auto: true precision in the model's dtype", allowed=PRECISIONS)
    strategy: str = option("auto", "how the work is divided over devices", allowed=tuple(STRATEGIES))
    cpu_offload: bool = option(False, "fsdp: keep the shards in main memory between uses")
    optimizer: str = option(ADAMW, f"of both stages: {_of(OPTIMIZERS)}", allowed=tuple(OPTIMIZERS))
    gradient_checkpointing: bool = option(False, "recompute activations in the backward pass")
    chunked_loss: bool = option(False, "compute logits and loss in pieces: less memory with large vocabularies")
    router_loss: bool | None = option(None, "add the family's loss of its routers; null: if the model's config has it")
    max_grad_norm: float | None = option(1.0, "clip the global gradient norm; null: never", minimum=0.0)
    eval_every_steps: int | None = option(
        None, "steps between measurements of the held-out loss; it is measured behind each epoch anyway", minimum=1
    )
    keep: str = option(LAST, f"which weights a stage leaves: {_of(KEPT_WEIGHTS)}", allowed=tuple(KEPT_WEIGHTS))
    checkpoint_every_steps: int = option(50, "steps between resumable checkpoints", minimum=1)
    checkpoint_format: str = option("full", "how a resumable checkpoint is written", allowed=tuple(CHECKPOINT_FORMATS))
    lora: LoraConfig = field(default_factory=LoraConfig)
    stage1: StageConfig = field(default_factory=lambda: StageConfig(learning_rate=1e-4))
    stage2: StageConfig = field(default_factory=StageConfig)
    early_stop: EarlyStopConfig = field(default_factory=EarlyStopConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    dpo: DpoConfig = field(default_factory=DpoConfig)
