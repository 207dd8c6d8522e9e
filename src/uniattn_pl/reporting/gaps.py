"""The missing cells of a table, grouped by reason, each group with the command that fills it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from uniattn_pl.config.report_checks import ANALYSES
from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.measuring_sections import PROBES, EvaluationConfig
from uniattn_pl.errors import did_you_mean
from uniattn_pl.printed_commands import config_words, uniattn
from uniattn_pl.reporting.cells import Table
from uniattn_pl.reporting.columns import COST, EVAL, TTFT, Column
from uniattn_pl.reporting.lookup import Lookup, metric_of
from uniattn_pl.reporting.report_rows import H2O, Member, ReportRow
from uniattn_pl.sweeps.points import is_sweep
from uniattn_pl.tracking.metric_names import RETAIN_RATE

OF_FITS = ("kv_retain_rate", "kv_cache_bytes", "kv_cache_bytes_unmodified", "parameters")
HELD_OUT_WORDS = ("held_out", "heldout", "val", "eval", "test", "dev")  # how others call rows that are not trained on
NOT_OF_VARIANTS = "it is not measured of a compressed cache or of dropped layers"


@dataclass(frozen=True)
class Gap:
    """Why cells are missing, and which: a line per column with its rows, or one of points.

    `command` fills them; it is None where the config must change first.
    """

    reason: str
    command: str | None
    cells: tuple[str, ...]


class CommandLine:
    """The user's files and overrides, for commands that are to be copied."""

    def __init__(self, files: Sequence[Path], overrides: Sequence[str], config: ExperimentConfig) -> None:
        self.files, self.overrides = files, overrides
        self.is_sweep = is_sweep(config)

    def of(self, command: str, *further: str) -> str:
        """One command with these files and overrides."""
        return uniattn(command, *config_words(self.files, self.overrides), *further)

    @property
    def fit(self) -> str:
        return self.of("sweep" if self.is_sweep else "fit")

    @property
    def evaluate(self) -> str:
        """A sweep evaluates what it has fitted."""
        return self.of("sweep" if self.is_sweep else "evaluate")


def gaps_of(table: Table, lookup: Lookup, line: CommandLine, analyses: Sequence[str]) -> list[Gap]:
    """All gaps, grouped; `analyses` are the figures that were not found."""
    grouped: dict[tuple[str, str | None], dict[str, list[str]]] = {}
    for reason, command, heading, row in (*_not_finished(table, line), *_missing(table, lookup, line)):
        grouped.setdefault((reason, command), {}).setdefault(heading, []).append(row)
    all_rows = {_named(row, member) for row in table.rows for member in row.members}
    gaps = [Gap(reason, command, _in_words(cells, all_rows)) for (reason, command), cells in grouped.items()]
    topics = dict.fromkeys(ANALYSES[name] for name in analyses)
    for topic in topics:
        names = "; ".join(name for name in analyses if ANALYSES[name] == topic)
        gaps.append(Gap("not analysed", line.of("analyze", "--only", topic), (names,)))
    return gaps


def _in_words(cells: Mapping[str, Sequence[str]], all_rows: Set[str]) -> tuple[str, ...]:
    """Columns with the rows that lack them; a row's name may have a comma of its own."""
    lines = []
    for heading, rows in cells.items():
        names = "every row" if len(all_rows) > 1 and all_rows == set(rows) else "; ".join(dict.fromkeys(rows))
        lines.append(f"{heading}: {names}" if heading else names)
    return tuple(lines)


MissingCell = tuple[str, str | None, str, str]  # reason, command, column, row


def _not_finished(table: Table, line: CommandLine) -> Iterable[MissingCell]:
    for row in table.rows:
        for member in row.members:
            if not member.finished:
                yield member.state, line.fit, "", member.name
            elif member.lost is not None:
                yield member.lost, line.fit, "", member.name


def _missing(table: Table, lookup: Lookup, line: CommandLine) -> Iterable[MissingCell]:
    """One entry per seed without a value, but where the run itself is missing."""
    logged = sorted({metric for row in table.rows for m in row.members if m.run for metric in m.run.data.metrics})
    measured = dict.fromkeys(one for column in table.columns for one in column.measured)
    for column in measured:
        for row in table.rows:
            for member in row.members:
                if lookup.find(row, member, column) is None:
                    cause = _why(row, member, column, line, logged)
                    if cause is not None:
                        yield *cause, column.heading, _named(row, member)


def _named(row: ReportRow, member: Member) -> str:
    return f"{row.name} (seed {member.seed})" if len(row.members) > 1 else row.name


def _why(
    row: ReportRow, member: Member, column: Column, line: CommandLine, logged: Sequence[str]
) -> tuple[str, str | None] | None:
    """Reason and command; None where the run is missing, which is said once for all its cells."""
    metric = column.metric
    if metric.startswith(COST) and metric.removeprefix(COST) not in OF_FITS:
        compressed = row.variant is not None and row.variant.kind == H2O
        if compressed and not metric.startswith(TTFT):
            return NOT_OF_VARIANTS, None
        return None if member.run is None else ("not benchmarked", _bench(row, column, line))
    if not member.finished:
        return None
    if metric == RETAIN_RATE and row.variant is not None:
        return ("not benchmarked", line.of("bench")) if row.variant.kind == H2O else ("not evaluated", line.evaluate)
    if metric.startswith(EVAL):
        return _why_not_evaluated(row, member, column, line)
    if row.variant is not None:
        return NOT_OF_VARIANTS, None
    at = "" if column.step is None or metric not in logged else f" at step {column.step}"
    near = "" if metric in logged else _meant(metric, logged)
    return f"the runs have no metric `{metric}`{at}.{near}", None


def _meant(metric: str, logged: Sequence[str]) -> str:
    """A hint at the metric that was meant: a held-out loss by another name, else the one that is most alike."""
    stage, _, name = metric.rpartition("/")
    if "loss" in name and any(word in metric for word in HELD_OUT_WORDS):
        found = [one for one in (f"{stage}/response_loss", "val/response_loss") if one in logged]
        if found:
            return f" The held-out loss is '{found[0]}'."
    return did_you_mean(metric, logged)


def _bench(row: ReportRow, column: Column, line: CommandLine) -> str:
    lengths = row.loaded.config.bench.lengths
    if column.step is None or column.step in lengths:
        return line.of("bench")
    return line.of("bench", f"bench.lengths={sorted({*lengths, column.step})}")


def _why_not_evaluated(row: ReportRow, member: Member, column: Column, line: CommandLine) -> tuple[str, str | None]:
    assert member.run is not None
    task, _, _ = column.metric.removeprefix(EVAL).partition("/")
    options = row.loaded.config.evaluation
    if row.variant is not None and row.variant.kind == H2O and task == "positions":
        return NOT_OF_VARIANTS, None
    setting = _needed_setting(task, options)
    if setting is not None:
        return f"the config does not ask for `{column.metric}`: {setting}", None
    logged_name = metric_of(row, column.metric) or column.metric
    others = [metric for metric in member.run.data.metrics if metric.startswith(logged_name.rpartition("/")[0] + "/")]
    if others:
        near = did_you_mean(logged_name, others) or f" There are: {', '.join(sorted(others))}."
        return f"the task has no metric `{logged_name}`.{near}", None
    return "not evaluated", line.evaluate


def _needed_setting(task: str, options: EvaluationConfig) -> str | None:
    """What to set so that a task or a probe's part is measured; None when it is asked for."""
    probe = next((name for name in PROBES if task == name or task.startswith(f"{name}_")), None)
    if probe is None:
        is_requested = any(task == name or task.startswith(f"{name}_") for name in options.tasks)
        return None if is_requested else f"add '{task}' to evaluation.tasks"
    if probe not in options.probes:
        return f"add '{probe}' to evaluation.probes"
    length = task.rpartition("_")[2]
    if length.isdigit() and int(length) not in options.lengths:
        return f"add {length} to evaluation.lengths"
    return None
