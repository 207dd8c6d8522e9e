"""The processes of one fit: started together, connected, and ended together."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.errors import UserError
from uniattn_pl.resilience import ranks
from uniattn_pl.resilience.devices import LIGHTNING_RAISES, device_problems, devices_on_node
from uniattn_pl.resilience.launchers import LIGHTNING, SLURM, Launcher, launcher
from uniattn_pl.resilience.rendezvous import PatientDDPStrategy

# Rank 0 may search layers for hours while the others wait; who started the ranks ends them when one dies.
COLLECTIVE_TIMEOUT = timedelta(hours=12)
PARENT_POLL_S = 1.0
LAST_WORDS_S = 60.0
T = TypeVar("T")


class Cluster:
    """Which ranks there are, and what they say to each other; started by Lightning, torchrun or SLURM.

    Args:
        config: accelerator, devices and nodes; under torchrun `devices: auto` means what torchrun started.

    Raises:
        UserError: the devices are not there, or whoever started this process says otherwise.
    """

    def __init__(self, config: ExperimentConfig) -> None:
        by = launcher()
        if by.problems:
            raise UserError(*by.problems, *device_problems(config, "auto"))
        devices, num_nodes = _places(config, by)
        problems = device_problems(config, devices)
        if not problems:
            on_node = devices_on_node(devices, config.trainer.accelerator)
            asked = f"trainer.devices={devices}" + (f" ({on_node} here)" if devices in ("auto", "-1", -1) else "")
            problems = by.mismatches(on_node, num_nodes, asked)
        if problems:
            raise UserError(*problems)
        self._connect(config, devices, num_nodes, by)

    @classmethod
    def alone(cls, config: ExperimentConfig) -> Cluster:
        """One process and one device, whatever else the experiment or a scheduler's allocation has.

        Raises:
            UserError: there is no such device, or several processes do the same.
        """
        by = launcher()
        problems = device_problems(config, "auto")
        if not by.problems and by.started_several:  # what SLURM's shell says of an allocation does not matter
            problems.append(
                f"only a fit runs in several processes, and {by.name} has started {by.world_size} ({by.size}); start "
                "one, without torchrun, with srun --ntasks=1."
            )
        if problems:
            raise UserError(*problems)
        cluster = cls.__new__(cls)
        cluster._connect(config, 1, 1, Launcher(), plugins=[LightningEnvironment()])
        return cluster

    def _connect(
        self, config: ExperimentConfig, devices: int | str, num_nodes: int, by: Launcher, **options: Any
    ) -> None:
        self.devices, self.num_nodes = devices, num_nodes
        self._started_by_parent, self._joined = False, False
        where: dict[str, Any] = {"accelerator": config.trainer.accelerator, "devices": devices, "num_nodes": num_nodes}
        # where SLURM is installed, of every fit that does not want it
        warnings.filterwarnings("ignore", message="The `srun` command is available on your system but is not used")
        try:
            self._fabric = Fabric(**where, **options)
            if self._fabric.world_size > 1:
                backend = "cpu:gloo,cuda:nccl" if config.training.cpu_offload and self.device.type == "cuda" else None
                strategy = PatientDDPStrategy(
                    _reason(by, devices), process_group_backend=backend, timeout=COLLECTIVE_TIMEOUT
                )
                self._fabric = Fabric(**where, strategy=strategy)
        except LIGHTNING_RAISES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"trainer.accelerator={config.trainer.accelerator}, trainer.devices={devices}, "
                f"trainer.num_nodes={num_nodes}: Lightning cannot start so: {reason}"
            ) from error

    @property
    def rank(self) -> int:
        """Of this process among all; 0 before `launch`, where it is the one that launches."""
        return self._fabric.global_rank

    @property
    def world_size(self) -> int:
        return self._fabric.world_size

    @property
    def device(self) -> torch.device:
        return self._fabric.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def starts_others(self) -> bool:
        """Whether the other ranks do not exist before `launch`: nothing else has started them."""
        return self._environment is not None and not self._environment.creates_processes_externally

    @property
    def _environment(self) -> ClusterEnvironment | None:
        return getattr(self._fabric.strategy, "cluster_environment", None)

    def launch(self) -> None:
        """Start the other ranks unless something else did, and connect with them."""
        if self.world_size == 1:
            return
        local = os.environ.get("LOCAL_RANK", "0")
        self._started_by_parent = isinstance(self._environment, LightningEnvironment) and local != "0"
        if self._started_by_parent:
            threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
        self._fabric.launch()
        self._joined = True

    def broadcast(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return ranks.broadcast(value)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        ranks.barrier()

    def sums(self, values: Sequence[float]) -> list[float]:
        """Elementwise sums of every rank's numbers, in float64."""
        if not ranks.grouped():
            return list(values)
        total = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(total)
        return total.tolist()

    def close(self) -> None:
        """Disconnect; the ranks that this process started end by themselves."""
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()

    def let_parent_end(self) -> None:
        """As a rank that Lightning has started: let rank 0 say why all of them end, before this process does.

        Whoever started ranks ends at once when one of them fails, in the middle of a word.
        """
        deadline = time.monotonic() + LAST_WORDS_S
        while self._started_by_parent and self._joined and time.monotonic() < deadline:
            time.sleep(PARENT_POLL_S)  # the thread that watches the parent ends this process


def _places(config: ExperimentConfig, by: Launcher) -> tuple[int | str, int]:
    """Devices on a node and nodes: as configured, or as torchrun has started processes."""
    devices, nodes = config.trainer.devices, config.trainer.num_nodes
    if config.training.strategy == "single" and devices == "auto":
        return 1, 1
    if devices == "auto" and by.per_node and by.nodes and by.name != SLURM:
        return by.per_node, by.nodes
    return devices, nodes


def _reason(by: Launcher, devices: int | str) -> str:
    """Why there are several processes, for who waits for them."""
    if by.name == SLURM:
        return f"{by.size}; started without srun?"
    if by.name in (None, LIGHTNING):
        return f"trainer.devices={devices}; Lightning starts those of one machine, each other one needs this command"
    return f"{by.size}; {by.name} is to start all of them"


def _end_with_parent(parent: int) -> None:
    """A rank whose launcher was killed would wait forever in a collective operation."""
    while os.getppid() == parent:
        time.sleep(PARENT_POLL_S)
    os._exit(1)
