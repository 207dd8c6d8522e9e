"""`trainer`: arguments of the Lightning Trainer."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.config.sections.limits import MOST_PROCESSES
from uniattn_pl.options import option

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")


@dataclass
class TrainerConfig:
    """Arguments of the Lightning Trainer."""

    accelerator: str = option("auto", "which kind of device; auto: a GPU where there is one", allowed=ACCELERATORS)
    devices: int | str = option("auto", "number of devices on a node, or auto", maximum=MOST_PROCESSES)
    num_nodes: int = option(1, "number of machines", minimum=1, maximum=MOST_PROCESSES)
    deterministic: bool = option(False, "deterministic kernels only")
    log_every_n_steps: int = option(1, "steps between logged metrics", minimum=1)
    default_root_dir: str = option("runs/${name}", "folder of checkpoints and of the run's manifest", path=True)
