"""`sweep` and `report`: many runs, and what is shown of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uniattn_pl.config.sections.limits import LARGEST_SEED
from uniattn_pl.options import option

FOLLOWING = (BENCH, REPORT) = ("bench", "report")


@dataclass
class SlurmConfig:
    """The jobs in which SLURM runs the workers of `sweep --launcher slurm`; each worker does one point at a time."""

    workers: int = option(
        1, "jobs, at most one for each point that is left; 0: none, only show the sweep", minimum=0, maximum=1000
    )
    partition: str | None = option(None, "of the cluster; default: its own")
    minutes: int = option(
        1440, "time limit of a job, which saves its fit before it, queues again and goes on", minimum=1
    )
    gpus: int = option(0, "of a job", minimum=0)
    cpus: int | None = option(None, "cores of a job; default: the partition's", minimum=1)
    memory_gib: float | None = option(None, "main memory of a job; default: the partition's", minimum=0.1)
    options: dict[str, Any] = option({}, "further options of sbatch, such as {account: name, constraint: a100}")


@dataclass
class SweepConfig:
    """What `sweep` runs: every named point, at every combination of the grid, with every seed."""

    grid: dict[str, Any] = option({}, "config key: list of its values; all combinations are run")
    points: dict[str, Any] = option({}, "name of a point: the config keys it sets")
    seeds: list[int] = option(
        [], "seeds of every point; default: this experiment's seed alone", minimum=0, maximum=LARGEST_SEED
    )
    max_steps: int | None = option(None, "optimizer steps of each stage at most, in every point", minimum=1)
    retries: int = option(1, "how often a point that failed is tried again, behind all others", minimum=0)
    prune_after: int | None = option(
        None,
        "stop a point whose loss after initialisation or stage 1 is above the median of so many others; default: never",
        minimum=1,
    )
    storage: str | None = option(
        None, "database of the ledger (SQLAlchemy URL); default: sqlite in the sweep's folder", path=True
    )
    then: list[str] = option(
        [], f"commands that follow, once, when every point has ended, with the same config: {', '.join(FOLLOWING)}"
    )
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class ReportConfig:
    """What `report` shows of a sweep: one row per point, a column per metric, and figures."""

    title: str = option("", "heading; default: the name of the experiment")
    columns: dict[str, Any] = option(
        {},
        "heading of a column: an MLflow metric, METRIC@STEP for its value at one step, or a list of other columns, "
        "of which it is the mean; default: what the runs have",
    )
    figures: dict[str, Any] = option(
        {}, "name of a figure: {x: column, config key or 'drop', y: [columns]}, one point or curve per row"
    )
    analysis: list[str] = option([], "figures of an `analyze` of the same model and data, such as similarity_matrix")
