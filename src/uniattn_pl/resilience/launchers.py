"""What torchrun, SLURM or Lightning say in the environment of the processes they start, and whether it can be so.

Lightning reads these variables with `int(os.environ[...])` and checks some of them: KeyError, ValueError and
RuntimeError, in the middle of a start. Here all of them are read first, and every problem names its variable.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

TORCHRUN, SLURM, LIGHTNING = "torchrun", "SLURM", "Lightning"
INTERACTIVE = ("bash", "interactive")  # names of SLURM jobs in which Lightning takes no notice of SLURM
PORTS = range(1, 2**16)
_LONGEST = 20  # characters of a number
_TORCHRUN = " torchrun sets these variables for all the processes it starts; unset them to run one process."
_SRUN = " srun sets these variables for all the processes it starts: srun --ntasks=1 for one process."


@dataclass(frozen=True)
class Launcher:
    """Who started this process, and as which of how many.

    Attributes:
        name: torchrun, SLURM or Lightning; None: nobody but the user.
        size: of the variable that says how many processes there are, with its value, as in SLURM_NTASKS=2.
        world_size, rank: processes, and which of them this one is.
        local: the variable that says which of its machine's processes it is, and the number.
        per_node, nodes: how they are divided, where that is said.
        problems: variables that are missing, are no numbers or contradict each other; the numbers are then not used.
    """

    name: str | None = None
    size: str = ""
    world_size: int = 1
    rank: int = 0
    local: tuple[str, int] = ("LOCAL_RANK", 0)
    per_node: int | None = None
    nodes: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def started_several(self) -> bool:
        """Whether other processes like this one are surely there: an allocation of several tasks is not enough."""
        if self.name == SLURM:
            step = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
            return self.rank > 0 or (step.isdecimal() and int(step) > 1)
        return self.world_size > 1

    def mismatches(self, devices: int, num_nodes: int, asked: str) -> list[str]:
        """What differs between the processes that were started and those that the config asks for.

        Args:
            devices: on each node.
            asked: how the config says so.
        """
        if self.problems or self.name is None:
            return []
        found = []
        variable, local = self.local
        if self.name == SLURM and self.world_size > 1:
            found = self._mismatches_of_slurm(devices, num_nodes, asked)
        # Lightning tells its own processes how many they are; where nothing does, its config alone decides.
        counted = self.name != LIGHTNING or self.world_size > 1
        if not found and counted and devices * num_nodes != self.world_size:
            found.append(
                f"{self.size}: {self.name} starts {self.world_size} process(es), and {asked} with trainer.num_nodes="
                f"{num_nodes} makes {devices * num_nodes}; {self._way_out(devices, num_nodes)}."
            )
        if not found and local >= devices:
            found.append(f"{variable}={local} must be below the processes of a machine ({asked}): they count from 0.")
        return found

    def _mismatches_of_slurm(self, devices: int, num_nodes: int, asked: str) -> list[str]:
        if self.per_node is None:
            wanted = -(-self.world_size // num_nodes)
            return [
                f"{self.size} without SLURM_NTASKS_PER_NODE: SLURM does not say how the processes are divided over "
                f"nodes; ask it for --nodes={num_nodes} --ntasks-per-node={wanted} instead of "
                f"--ntasks={self.world_size}, with trainer.devices={wanted}."
            ]
        found = []
        if self.nodes not in (None, num_nodes):
            found.append(
                f"SLURM_NNODES={self.nodes} and trainer.num_nodes={num_nodes} differ; set trainer.num_nodes="
                f"{self.nodes}, or ask SLURM for --nodes={num_nodes}."
            )
        if self.per_node != devices:
            found.append(
                f"SLURM_NTASKS_PER_NODE={self.per_node} and {asked} differ; set trainer.devices={self.per_node}, or "
                f"ask SLURM for --ntasks-per-node={devices}."
            )
        return found

    def _way_out(self, devices: int, num_nodes: int) -> str:
        if self.name == SLURM:
            return f"start it with srun --nodes={num_nodes} --ntasks-per-node={devices}"
        if self.name == LIGHTNING:
            return "unset WORLD_SIZE and LOCAL_RANK, or set trainer.devices"
        return f"start torchrun --nnodes {num_nodes} --nproc-per-node {devices}, or set trainer.devices=auto"


def launcher(environment: Mapping[str, str] | None = None) -> Launcher:
    """Who started this process, by its environment; in the order in which Lightning looks."""
    variables = _Variables(os.environ if environment is None else environment)
    if "TORCHELASTIC_RUN_ID" in variables.values:
        return _torchrun(variables)
    if "SLURM_NTASKS" in variables.values and variables.values.get("SLURM_JOB_NAME") not in INTERACTIVE:
        return _slurm(variables)
    return _lightning(variables)


def _torchrun(variables: _Variables) -> Launcher:
    by = "torchrun has started this process (TORCHELASTIC_RUN_ID is set)"
    world_size = variables.number("WORLD_SIZE", by, minimum=1)
    rank = variables.number("RANK", by, below=("WORLD_SIZE", world_size))
    per_node = variables.number("LOCAL_WORLD_SIZE", None, minimum=1)
    local = variables.number("LOCAL_RANK", by, below=("LOCAL_WORLD_SIZE", per_node))
    variables.number("GROUP_RANK", None)
    variables.port()
    if (world_size or 1) > 1 and not variables.values.get("MASTER_ADDR"):
        variables.missing.setdefault(by, []).append("MASTER_ADDR")
    if world_size and per_node and world_size % per_node:
        variables.problems.append(f"WORLD_SIZE={world_size} is no multiple of LOCAL_WORLD_SIZE={per_node}.")
    nodes = world_size // per_node if world_size and per_node else None
    place = world_size or 1, rank or 0, ("LOCAL_RANK", local or 0)
    return Launcher(TORCHRUN, f"WORLD_SIZE={world_size}", *place, per_node, nodes, variables.explained(_TORCHRUN))


def _slurm(variables: _Variables) -> Launcher:
    tasks = variables.number("SLURM_NTASKS", None, minimum=1)
    several = f"SLURM has {tasks} tasks (SLURM_NTASKS={tasks})" if (tasks or 1) > 1 else None
    rank = variables.number("SLURM_PROCID", several, below=("SLURM_NTASKS", tasks))
    per_node = variables.number("SLURM_NTASKS_PER_NODE", None, minimum=1)
    local = variables.number("SLURM_LOCALID", several)
    variables.number("SLURM_NODEID", several)
    nodes = variables.number("SLURM_NNODES", None, minimum=1)
    variables.number("SLURM_STEP_NUM_TASKS", None)
    variables.port()
    job = variables.values.get("SLURM_JOB_ID", "0")
    if several and not job[-4:].isdecimal():  # Lightning makes a port of it
        variables.problems.append(f"SLURM_JOB_ID='{job}' does not end in a number.")
    place = tasks or 1, rank or 0, ("SLURM_LOCALID", local or 0)
    return Launcher(SLURM, f"SLURM_NTASKS={tasks}", *place, per_node, nodes, variables.explained(_SRUN))


def _lightning(variables: _Variables) -> Launcher:
    local = variables.number("LOCAL_RANK", None)
    for variable in ("NODE_RANK", "GROUP_RANK", "STANDALONE_PORT"):
        variables.number(variable, None)
    variables.port()
    world_size = variables.number("WORLD_SIZE", None, minimum=1)
    if local is None and (world_size or 1) > 1:
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR") if name not in variables.values]
        variables.missing[f"there are to be {world_size} processes (WORLD_SIZE={world_size})"] = missing
    name = None if local is None else LIGHTNING
    place = world_size or 1, 0, ("LOCAL_RANK", local or 0)
    return Launcher(name, f"WORLD_SIZE={world_size}", *place, problems=variables.explained(_TORCHRUN))


class _Variables:
    """Reads numbers from an environment and keeps what is wrong with them."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self.values, self.problems = values, list[str]()
        self.missing: dict[str, list[str]] = {}

    def number(
        self, name: str, needed: str | None, *, minimum: int = 0, below: tuple[str, int | None] | None = None
    ) -> int | None:
        """The value of a variable, or None with a problem; one that is not `needed` may be missing.

        Args:
            needed: why it must be there.
            below: a variable and its value, which this one must be less than.
        """
        text = self.values.get(name)
        if text is None:
            if needed is not None:
                self.missing.setdefault(needed, []).append(name)
            return None
        if not text.strip().isdecimal() or len(text) > _LONGEST or int(text) < minimum:
            self.problems.append(f"{name}='{text[:_LONGEST]}' is no whole number of at least {minimum}.")
            return None
        number = int(text)
        if below is not None and below[1] is not None and number >= below[1]:
            self.problems.append(f"{name}={number} must be below {below[0]}={below[1]}: processes count from 0.")
            return None
        return number

    def port(self) -> None:
        """Look at MASTER_PORT, where one is set."""
        port = self.number("MASTER_PORT", None)
        if port is not None and port not in PORTS:
            self.problems.append(f"MASTER_PORT={port} is no port; ports are {PORTS.start} to {PORTS.stop - 1}.")

    def explained(self, way_out: str) -> list[str]:
        """All problems, the last with what to do about them."""
        problems = list(self.problems)
        for needed, names in self.missing.items():
            problems.append(f"{needed}, but {', '.join(names)} {'is' if len(names) == 1 else 'are'} not set.")
        if problems:
            problems[-1] += way_out
        return problems
