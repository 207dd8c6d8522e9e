"""The rows of a report: one for all points that differ by their seed alone, and one for each of its variants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uniattn_pl.config import LoadedConfig
from uniattn_pl.plan.roles import UNMODIFIED
from uniattn_pl.reporting.tracked_runs import FINISHED, RunStore, point_run, single_run
from uniattn_pl.sweeps.lost_points import lost_model
from uniattn_pl.sweeps.sweep_folder import SweepFolder
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.metric_names import RETAIN_RATE

if TYPE_CHECKING:
    from mlflow.entities import Run

H2O, DROP = "h2o", "drop"


@dataclass(frozen=True)
class Member:
    """One point of a row, and its run as far as there is one.

    Attributes:
        lost: what the run's folder on this machine has lost of the model, in words.
    """

    name: str
    seed: int
    run: Run | None
    lost: str | None = None

    @property
    def finished(self) -> bool:
        return self.run is not None and self.run.info.status == FINISHED

    @property
    def state(self) -> str:
        """In words, for people."""
        return "no run" if self.run is None else f"run {self.run.info.status.lower()}"


@dataclass(frozen=True)
class RowVariant:
    """A way in which a fitted model is measured again: `h2o` keeps a part of the cache, `drop` drops layers."""

    kind: str
    amount: float

    @property
    def suffix(self) -> str:
        """Of the task in its metrics, and its tag on a benchmark's run."""
        return tags.h2o_variant(self.amount) if self.kind == H2O else tags.drop_variant(int(self.amount))

    def named(self, row: str) -> str:
        """The name of the variant of a row."""
        if self.kind == H2O:
            return f"{row} + H2O, {100 * (1 - self.amount):.3g} % compressed"
        return f"{row}, {self.amount:g} dropped"


@dataclass(frozen=True)
class ReportRow:
    """One line of the table.

    Attributes:
        base: name of the row that a variant is one of, else its own.
        loaded: the experiment of its first member.
        settings: what the sweep sets in it, as overrides without name and seed.
        members: one per seed.
    """

    name: str
    base: str
    loaded: LoadedConfig
    settings: tuple[str, ...]
    members: tuple[Member, ...]
    variant: RowVariant | None = None

    @property
    def architecture(self) -> str:
        """The architecture's name, from the tags of its runs, else from the config."""
        tagged = (member.run.data.tags.get(tags.ARCHITECTURE) for member in self.members if member.run is not None)
        return next((name for name in tagged if name), self.loaded.architecture.name)

    @property
    def mechanism(self) -> str:
        """What its plan saves by, from the tags of its runs, else what its architecture does."""
        tagged = (member.run.data.tags.get(tags.MECHANISM) for member in self.members if member.run is not None)
        found = next((name for name in tagged if name), self.loaded.architecture.mechanism)
        return found if self.modified else UNMODIFIED

    @property
    def modified(self) -> bool:
        """Whether it changes the model, so that it takes part in the comparison of what that loses."""
        rates = [m.run.data.metrics.get(RETAIN_RATE, 1.0) for m in self.members if m.run is not None]
        return self.variant is not None or self.architecture != tags.BASELINE or min(rates, default=1.0) < 1


def sweep_rows(runs: RunStore, points: Sequence[Point], parent: Run | None, base: LoadedConfig) -> list[ReportRow]:
    """The rows of a sweep, each followed by its variants, in the order of the points."""
    groups: dict[tuple[str, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(_settings(point), []).append(point)
    folder = SweepFolder(Path(base.config.trainer.default_root_dir))
    folders = folder.planned(points) if folder.bookkeeping.is_dir() else {}  # else the sweep was not run here
    rows = []
    for settings, group in groups.items():
        name = _common_name(group, base.config.name)
        members = tuple(_member(point, point_run(runs, point, parent, base), folders) for point in group)
        rows.append(ReportRow(name, name, group[0].loaded, settings, members))
    return _with_variants(rows)


def single_row(runs: RunStore, loaded: LoadedConfig) -> list[ReportRow]:
    """The row of a config without a sweep, and its variants."""
    name = loaded.config.name
    run, folder = single_run(runs, loaded), Path(loaded.config.trainer.default_root_dir)
    member = Member(name, loaded.config.seed, run, _lost(run, folder) if folder.parent.is_dir() else None)
    return _with_variants([ReportRow(name, name, loaded, (), (member,))])


def _member(point: Point, run: Run | None, folders: Mapping[str, Path]) -> Member:
    lost = _lost(run, folders[point.key]) if point.key in folders else None
    return Member(point.name, point.loaded.config.seed, run, lost)


def _lost(run: Run | None, folder: Path) -> str | None:
    """What is lost of the model of a finished run whose folder was this one, which another machine's is not."""
    if run is None or run.info.status != FINISHED or run.data.tags.get(tags.FOLDER) != str(folder.resolve()):
        return None
    return lost_model(folder)


def _settings(point: Point) -> tuple[str, ...]:
    return tuple(sorted(word for word in point.words if word.partition("=")[0] not in ("seed", "name")))


def _common_name(group: Sequence[Point], sweep: str) -> str:
    """The points' name without their seed."""
    names: dict[str, None] = {}
    for point in group:
        seed = f"seed={point.loaded.config.seed}"
        names[",".join(part for part in point.name.split(",") if part != seed) or sweep] = None
    return " / ".join(names)


def _with_variants(rows: Sequence[ReportRow]) -> list[ReportRow]:
    all_rows = []
    for row in rows:
        options = row.loaded.config.evaluation
        variants = [RowVariant(H2O, rate) for rate in dict.fromkeys(options.h2o)]
        if row.modified:  # an unmodified model has no operated layer to drop
            variants += [RowVariant(DROP, count) for count in sorted(set(options.drop))]
        all_rows.append(row)
        all_rows += [replace(row, name=variant.named(row.name), variant=variant) for variant in variants]
    return all_rows
