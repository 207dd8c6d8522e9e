"""Checks of how stages end and of what updates their weights, run with those of `config/checks.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.training_section import BEST, HELD_OUT_LOSS, StageConfig
from uniattn_pl.plan.optimizer_memory import ADAMW_8BIT
from uniattn_pl.printed_commands import install

EARLY_STOP, EVERY, LORA = "training.early_stop", "training.eval_every_steps", "training.lora"
LENGTHS = tuple(f"training.stage{number}.{key}" for number in (1, 2) for key in ("max_steps", "max_epochs"))


def _enabled(config: ExperimentConfig) -> dict[int, StageConfig]:
    """The stages that run, by number."""
    stages = {1: config.training.stage1, 2: config.training.stage2}
    return {number: stage for number, stage in stages.items() if stage.enabled}


def _stages(config: ExperimentConfig) -> str | None:
    stages = config.training.early_stop.stages
    if stages and len(set(stages)) == len(stages):
        return None
    return f"expected 1, 2 or both, once each; got {stages}. enabled=false lets no stage end early."


def _watched(config: ExperimentConfig) -> str | None:
    options = config.training.early_stop
    if not options.enabled or options.monitor != HELD_OUT_LOSS:
        return None
    stages = {number: stage for number, stage in _enabled(config).items() if number in options.stages}
    return _unmeasured(config, stages.values())


def _best(config: ExperimentConfig) -> str | None:
    return _unmeasured(config, _enabled(config).values()) if config.training.keep == BEST else None


def _unmeasured(config: ExperimentConfig, stages: Iterable[StageConfig]) -> str | None:
    """What is wrong where the held-out loss is measured in none of these stages before its end."""
    every, stages = config.training.eval_every_steps, list(stages)
    for stage in stages:
        within = every is not None and (stage.max_steps is None or every < stage.max_steps)
        if within or stage.max_epochs > 1:
            return None
    if not stages:
        return None
    steps = [stage.max_steps for stage in stages if stage.max_steps is not None]
    fewer = f", below {max(steps)}," if steps else ""
    return f"the held-out loss is not measured before the end of a stage; set {EVERY}{fewer} or more than one epoch."


def _w_c_rate(config: ExperimentConfig) -> str | None:
    distillation = config.training.distillation
    learns_maps = distillation.teacher is not None and distillation.stage1.maps > 0
    if config.training.stage1.w_c_learning_rate is None or learns_maps:
        return None
    return "stage 1 trains W_c alone, at training.stage1.learning_rate; set that, or the rate of training.stage2."


def _eight_bits(config: ExperimentConfig) -> str | None:
    training = config.training
    if training.optimizer != ADAMW_8BIT:
        return None
    if training.strategy == "fsdp":
        return "adamw_8bit is bitsandbytes', whose kernels take no shards (DTensor); on fsdp use adamw or muon."
    return _needs_bitsandbytes(ADAMW_8BIT)


def _dora(config: ExperimentConfig) -> str | None:
    return _without_lora(config) if config.training.lora.dora else None


def _four_bits(config: ExperimentConfig) -> str | None:
    training, name = config.training, config.training.lora.quantization
    if name is None:
        return None
    if training.cpu_offload:
        return (
            f"{name} weights go with scales that no strategy offloads; set training.cpu_offload=false, which they make "
            "up for."
        )
    return _without_lora(config) or _needs_bitsandbytes(name)


def _without_lora(config: ExperimentConfig) -> str | None:
    return None if config.training.lora.enabled else "is of low-rank updates; it needs training.lora.enabled=true."


def _needs_bitsandbytes(name: str) -> str | None:
    if find_spec("bitsandbytes") is not None:
        return None
    command = install("uniattn-pl[quantization]")
    return f"'{name}' needs the package bitsandbytes (CPU and CUDA); install it with: {command}"


TRAINING_CHECKS: tuple[tuple[tuple[str, ...], Callable[[ExperimentConfig], str | None]], ...] = (
    ((f"{EARLY_STOP}.stages",), _stages),
    ((f"{EARLY_STOP}.monitor", f"{EARLY_STOP}.stages", EVERY, *LENGTHS), _watched),
    (("training.keep", EVERY, *LENGTHS), _best),
    (("training.stage1.w_c_learning_rate",), _w_c_rate),
    (("training.optimizer", "training.strategy"), _eight_bits),
    ((f"{LORA}.dora", f"{LORA}.enabled"), _dora),
    ((f"{LORA}.quantization", f"{LORA}.enabled", "training.cpu_offload"), _four_bits),
)
