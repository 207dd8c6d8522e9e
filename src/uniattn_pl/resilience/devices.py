"""Whether the devices that a config asks for are in this machine."""

from __future__ import annotations

import os
import re

import torch
from lightning.fabric.accelerators.mps import MPSAccelerator
from lightning.fabric.utilities.exceptions import MisconfigurationException

from uniattn_pl.config.schema import ExperimentConfig

CPU, CUDA, MPS = "cpu", "cuda", "mps"
# What Lightning raises while it looks for devices, launchers and strategies (accelerator_connector.py, fabric's
# connector.py, device_parser.py, plugins/environments): MisconfigurationException for devices that are not there,
# ValueError for names and for mismatches with a launcher, TypeError for forms of `devices`, RuntimeError for kinds of
# devices and SLURM's variables, KeyError for those that are missing, AssertionError for empty lists, IndexError for
# lists that are too short, ImportError for MPI and XLA, OSError for LSF's file of hosts.
LIGHTNING_RAISES = (
    MisconfigurationException,
    ValueError,
    TypeError,
    RuntimeError,
    KeyError,
    AssertionError,
    IndexError,
    ImportError,
    OSError,
)


def kinds() -> dict[str, int]:
    """The kinds of device in this machine, in the order in which `auto` takes them, and how many of each."""
    mps, cuda = MPSAccelerator.is_available(), torch.cuda.device_count()
    return {**({MPS: 1} if mps else {}), **({CUDA: cuda} if cuda else {}), CPU: os.cpu_count() or 1}


def device_problems(config: ExperimentConfig, devices: int | str) -> list[str]:
    """What a config asks for of this machine that is not there.

    Args:
        devices: on this node, as the config says or as a launcher has started processes.
    """
    here, accelerator = kinds(), config.trainer.accelerator
    kind = kind_of(accelerator, here)
    if kind is None:
        return [f"trainer.accelerator: {no_such_kind(accelerator, here)}"]
    problems = _count_problems(devices, kind, here[kind], accelerator)
    if config.training.precision == "16-mixed" and kind == CPU:
        # Lightning takes bf16-mixed instead, with a warning
        problems.append("training.precision: 16-mixed is for GPUs; on a CPU use 32-true or bf16-mixed.")
    return problems


def kind_of(accelerator: str, here: dict[str, int]) -> str | None:
    """The kind of device that a name means on this machine; None: it has none of them."""
    if accelerator == "auto":
        return next(iter(here))
    if accelerator == "gpu":
        return next((kind for kind in (MPS, CUDA) if kind in here), None)
    return accelerator if accelerator in here else None


def no_such_kind(accelerator: str, here: dict[str, int]) -> str:
    """Say that a kind of device is not in this machine, and which are."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    why = f" (CUDA_VISIBLE_DEVICES='{hidden}' hides others)" if hidden is not None and CUDA not in here else ""
    return f"there is no '{accelerator}' in this machine{why}; it has {', '.join(here)}. auto takes what there is."


def _count_problems(devices: int | str, kind: str, present: int, accelerator: str) -> list[str]:
    text = str(devices).strip()
    if text == "auto":
        return []
    takes = f"trainer.devices: trainer.accelerator={accelerator} is {kind} here, which takes"
    if kind != CUDA:
        most = "1 device" if kind == MPS else "a number of processes of at least 1"
        usable = text.isdecimal() and int(text) >= 1 and (kind == CPU or int(text) == 1)
        return [] if usable else [f"{takes} {most}, or auto; got {devices!r}."]
    numbers = re.findall(r"\d+", text) if "," in text else []
    if len(set(map(int, numbers))) < len(numbers):
        return [f"trainer.devices: {devices!r} names a GPU twice."]
    most_needed = max(map(int, numbers)) + 1 if numbers else present if text == "-1" else int(text)
    # torchrun may show each of its processes one GPU
    if most_needed <= present or (present == 1 and "TORCHELASTIC_RUN_ID" in os.environ):
        return []
    shown = (
        " (SLURM's --gpus-per-task shows each process one: ask for --gpus-per-node)"
        if "SLURM_NTASKS" in os.environ
        else ""
    )
    return [f"trainer.devices: {devices!r} needs {most_needed} GPUs, and this machine has {present}{shown}."]


def devices_on_node(devices: int | str, accelerator: str) -> int:
    """How many devices of this node a value of trainer.devices means."""
    here, text = kinds(), str(devices).strip()
    kind = kind_of(accelerator, here)
    if text in ("auto", "-1"):
        return 1 if kind in (CPU, MPS, None) else here[kind]
    return len(re.findall(r"\d+", text)) if "," in text else int(text)
