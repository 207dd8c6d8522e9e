"""Looks up the value of a cell: in the fit's run, or in that of a benchmark of the same plan and model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from uniattn_pl.reporting.columns import BOUNDS, COST, EVAL, TTFT, Column
from uniattn_pl.reporting.report_rows import DROP, H2O, Member, ReportRow
from uniattn_pl.reporting.tracked_runs import FINISHED, RunStore, spelled
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.metric_names import FORMER_CACHE_BYTES, RETAIN_RATE

if TYPE_CHECKING:
    from mlflow.entities import Run


@dataclass(frozen=True)
class Value:
    """A value with its 95 % interval, where it has one, and where it was logged.

    Attributes:
        source: id of the run.
        step: of a benchmark, the tokens of the prompt.
    """

    number: float
    low: float | None
    high: float | None
    source: str
    step: int | None = None


class Lookup:
    """Finds the values of an experiment's runs."""

    def __init__(self, runs: RunStore) -> None:
        self.runs = runs

    def find(self, row: ReportRow, member: Member, column: Column) -> Value | None:
        """The value of a metric column for one seed of a row; None where it is missing.

        A run that has not ended says what its plan costs, and nothing yet of quality.
        """
        if member.run is None:
            return None
        if column.metric.startswith(COST):
            return self._cost(row, member.run, column)
        metric = metric_of(row, column.metric)
        return self._read(member.run, metric, column.step) if member.finished and metric else None

    def stock(self, row: ReportRow, column: Column) -> Value | None:
        """The cost of the model without this package, from the newest benchmark of it."""
        benches = (r for r in self._benches(row) if r.data.tags.get(tags.ARCHITECTURE) == tags.STOCK)
        return self._first(benches, column)

    def costs(self, row: ReportRow) -> set[str]:
        """The names of what was measured of a row by benchmarks."""
        matching = [bench for m in row.members if m.run for bench in self._matching(row, m.run)]
        return {metric for bench in matching for metric in bench.data.metrics}

    def _cost(self, row: ReportRow, run: Run, column: Column) -> Value | None:
        variant, metric = row.variant, column.metric
        if variant is not None and variant.kind == H2O:
            return self._compressed(row, run, column, variant.amount)
        if variant is not None and metric == RETAIN_RATE:
            of_fit = self._read(run, f"{RETAIN_RATE}_{variant.suffix}", None)
        else:
            of_bench = variant is not None or metric.startswith(FORMER_CACHE_BYTES)
            of_fit = None if of_bench else self._read(run, metric, column.step)
        return of_fit or self._first(self._matching(row, run), column)

    def _compressed(self, row: ReportRow, run: Run, column: Column, rate: float) -> Value | None:
        """H2O compresses what the prefill has left: as long a prefill, and that part of the cache."""
        if column.metric != RETAIN_RATE and not column.metric.startswith(TTFT):
            return None
        whole = self._cost(replace(row, variant=None), run, column)
        if whole is None or column.metric != RETAIN_RATE:
            return whole
        return replace(whole, number=whole.number * rate)

    def _matching(self, row: ReportRow, run: Run) -> Iterator[Run]:
        """The benchmarks of a row's plan, newest first."""
        digest = run.data.tags.get(tags.PLAN)
        suffix = row.variant.suffix if row.variant is not None and row.variant.kind == DROP else None
        for bench in self._benches(row):
            bench_tags = bench.data.tags
            architecture = bench_tags.get(tags.ARCHITECTURE)
            same_plan = digest is not None and bench_tags.get(tags.PLAN) == digest
            unmodified = not row.modified and architecture == tags.BASELINE
            if architecture != tags.STOCK and bench_tags.get(tags.VARIANT) == suffix and (same_plan or unmodified):
                yield bench

    def _benches(self, row: ReportRow) -> Iterator[Run]:
        model = tags.short_name(row.loaded.config.model.source)
        for bench in self.runs.of_kind("bench"):
            if bench.info.status == FINISHED and bench.data.tags.get(tags.MODEL) == model:
                yield bench

    def _first(self, benches: Iterator[Run], column: Column) -> Value | None:
        """The value of the newest benchmark that has it, with the length of the prompt it was measured at."""
        for bench in benches:
            value = self._read(bench, column.metric, column.step)
            if value is not None:
                steps = self.runs.history(bench.info.run_id, spelled(bench, column.metric))
                return replace(value, step=column.step if column.step is not None else max(steps))
        return None

    def _read(self, run: Run, metric: str, step: int | None) -> Value | None:
        number = self.runs.value(run, metric, step)
        if number is None:
            return None
        low, high = (self.runs.value(run, metric + bound, step) for bound in BOUNDS)
        return Value(number, low, high, run.info.run_id)


def metric_of(row: ReportRow, metric: str) -> str | None:
    """The name under which the row's variant has a metric; None for what is not measured of a variant."""
    if row.variant is None:
        return metric
    if not metric.startswith(EVAL):
        return None
    task, _, name_in_task = metric.removeprefix(EVAL).partition("/")
    return f"{EVAL}{task}_{row.variant.suffix}/{name_in_task}"
