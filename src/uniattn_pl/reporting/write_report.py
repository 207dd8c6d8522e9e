"""One report: runs found, table filled, figures drawn, all of it written beside each other and into MLflow."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.config import LoadedConfig
from uniattn_pl.display.figure_style import images as figure_files
from uniattn_pl.display.figure_words import key_words
from uniattn_pl.display.text_table import print_table
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.files import atomic_file
from uniattn_pl.printed_commands import mlflow_ui
from uniattn_pl.redaction import redact
from uniattn_pl.reporting import columns as all_columns
from uniattn_pl.reporting.cells import Table, fill
from uniattn_pl.reporting.columns import Column
from uniattn_pl.reporting.document import Links, Report, csv_text, markdown, summary
from uniattn_pl.reporting.experiment_page import describe_experiment
from uniattn_pl.reporting.gaps import CommandLine, Gap, gaps_of
from uniattn_pl.reporting.lookup import Lookup
from uniattn_pl.reporting.report_figures import VARIANT_AXES, draw_figures
from uniattn_pl.reporting.report_page import report_page
from uniattn_pl.reporting.report_rows import ReportRow, single_row, sweep_rows
from uniattn_pl.reporting.results_file import results_json
from uniattn_pl.reporting.row_plans import plans_of
from uniattn_pl.reporting.shared_view import share_view
from uniattn_pl.reporting.tracked_runs import FINISHED, RunStore, answer, open_store, sweep_run
from uniattn_pl.sweeps.points import load_points
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.metric_names import RETAIN_RATE

if TYPE_CHECKING:
    from mlflow.entities import Run

ARTIFACTS, PAGE = "report", "report.html"


@dataclass(frozen=True)
class Request:
    """The report that the user asks for.

    Attributes:
        files, overrides: what `loaded` was loaded from.
        folder: where the report is written.
    """

    loaded: LoadedConfig
    files: Sequence[Path]
    overrides: Sequence[str]
    folder: Path


def write_report(request: Request) -> None:
    """Read the runs of a config from its tracking store, write their report, print its table.

    Raises:
        UserError: a figure refers to what is not there, the folder is a file, there is no such store or experiment.
        RunFailure: the store does not answer.
    """
    loaded = request.loaded
    line = CommandLine(request.files, request.overrides, loaded.config)
    points = load_points(request.files, request.overrides, loaded) if line.is_sweep else []
    runs = _checked(request, line, points)
    try:
        parent = sweep_run(runs, loaded.config.name, points) if line.is_sweep else None
        rows = sweep_rows(runs, points, parent, loaded) if line.is_sweep else single_row(runs, loaded)
        _check_any_run(rows, loaded, line)
        report, files = _composed(loaded, line, rows, parent, runs)
    except Exception as error:
        raise answer(error, loaded.config.tracking) from error
    _write(request.folder, files)
    _show(request, report, list(files))
    describe_experiment(runs)
    if parent is not None:
        _log(runs, parent, [request.folder / name for name in files], summary(report))


def _checked(request: Request, line: CommandLine, points: Sequence[Point]) -> RunStore:
    """The store, when nothing is wrong with the request. Raises UserError with all that is."""
    problems = _unknown_x(request.loaded, points)
    if request.folder.is_file():
        problems.append(f"--to '{request.folder}' is a file, not a folder.")
    try:
        runs = open_store(request.loaded.config.tracking, line.fit)
    except UserError as error:
        raise UserError(*problems, *error.problems) from error
    if problems:
        raise UserError(*problems)
    return runs


def _check_any_run(rows: Sequence[ReportRow], loaded: LoadedConfig, line: CommandLine) -> None:
    """Raise UserError where nothing of a config has been run, with the command that does it."""
    if any(member.run is not None for row in rows for member in row.members):
        return
    config = loaded.config
    what = f"none of the {len(rows)} rows of" if line.is_sweep else "no run of"
    raise UserError(
        f"{what} '{config.name}' is in experiment '{config.tracking.experiment}' of '{redact(config.tracking.uri)}': "
        f"there is nothing to report. This makes its runs: {line.fit}"
    )


def _unknown_x(loaded: LoadedConfig, points: Sequence[Point]) -> list[str]:
    report = loaded.config.report
    keys = [key for one in (loaded, *(point.loaded for point in points)) for key in one.flatten()]
    allowed = list(dict.fromkeys([*report.columns, *VARIANT_AXES, *keys]))
    return [
        f"report.figures: '{name}' has x '{figure['x']}', which is no column, no config key, and not drop or h2o."
        + did_you_mean(figure["x"], allowed)
        for name, figure in report.figures.items()
        if figure["x"] not in allowed and report.columns
    ]


def _composed(
    loaded: LoadedConfig, line: CommandLine, rows: list[ReportRow], parent: Run | None, runs: RunStore
) -> tuple[Report, dict[str, bytes]]:
    """The report, and its files by name."""
    config, lookup = loaded.config, Lookup(runs)
    table = fill(rows, _columns(config.report.columns, rows, lookup), lookup)
    figures = config.report.figures if table.columns else {}  # before any run there is nothing to show on an axis
    _check_figures(figures, table)
    images, captions = _drawn(figures, table)
    analyses = _analyses(loaded, runs)
    ids = dict.fromkeys(m.run.info.run_id for row in rows for m in row.members if m.run is not None)
    view = share_view(runs, config.name, list(ids)) if len(ids) > 1 else None
    absent = [name for name in config.report.analysis if name not in analyses]
    report = Report(
        title=config.report.title or config.name,
        made_by=line.of("report"),
        table=table,
        links=Links.to(config.tracking.uri, runs.experiment_id, view),
        gaps=gaps_of(table, lookup, line, absent),
        stock=_stock(table, lookup),
        figures=captions,
        analyses={name: f"Of MLflow run {run}." for name, (_, run) in analyses.items()},
        sweep_run=None if parent is None else parent.info.run_id,
    )
    images |= {f"{name}.png": content for name, (content, _) in analyses.items()}
    texts = {
        "table.csv": csv_text(table),
        "table.json": results_json(table, loaded, line),
        PAGE: report_page(report, plans_of(rows, runs)),
        "report.md": markdown(report),  # last: what it shows is there before it
    }
    return report, {**images, **{name: text.encode() for name, text in texts.items()}}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files; others in the folder stay. Raises UserError when it cannot be written to."""
    try:
        for name, content in files.items():
            with atomic_file(folder / name) as file:
                file.write(content)
    except OSError as error:
        raise UserError(
            f"the report cannot be written to '{folder}': {error}. Give another folder with --to."
        ) from error


def _log(runs: RunStore, parent: Run, files: Sequence[Path], description: str) -> None:
    """Store the report in the sweep's run; an error of the store is printed only, as the files are written already."""
    from mlflow.exceptions import MlflowException

    try:
        for file in files:
            runs.client.log_artifact(parent.info.run_id, str(file), ARTIFACTS)
        if len(description) <= tags.LONGEST:
            runs.client.set_tag(parent.info.run_id, tags.NOTE, description)
    except (MlflowException, OSError) as error:
        print(f"it is not in MLflow, which does not take it: {redact(str(error))}")


def _columns(definitions: Mapping[str, Any], rows: Sequence[ReportRow], lookup: Lookup) -> list[Column]:
    if definitions:
        return all_columns.parse(definitions)
    logged = {metric for row in rows for m in row.members if m.run is not None for metric in m.run.data.metrics}
    return all_columns.default(logged.union(*(lookup.costs(row) for row in rows)))


def _check_figures(figures: Mapping[str, Any], table: Table) -> None:
    """Check what figures show when the columns are what the runs have. Raises UserError with all problems."""
    headings = [column.heading for column in table.columns]
    keys = [key for row in table.rows for key in row.loaded.flatten()]
    problems = []
    for name, figure in figures.items():
        axes = [("x", figure["x"], [*headings, *VARIANT_AXES, *keys]), *(("y", y, headings) for y in figure["y"])]
        problems += [
            f"report.figures: '{name}' has {axis} '{shown}', which the runs do not have.{did_you_mean(shown, allowed)}"
            for axis, shown, allowed in axes
            if shown not in allowed
        ]
    if problems:
        raise UserError(*problems, f"Columns found in the runs: {', '.join(headings) or 'none'}.")


def _drawn(figures: Mapping[str, Any], table: Table) -> tuple[dict[str, bytes], dict[str, str]]:
    """File name -> image, and name of a figure -> caption."""
    images: dict[str, bytes] = {}
    captions: dict[str, str] = {}
    for name, axes in figures.items():
        across = key_words(axes["x"]) if axes["x"] not in VARIANT_AXES else VARIANT_AXES[axes["x"]][0]
        captions[name] = f"{', '.join(axes['y'])} over {across}."
        images |= figure_files(draw_figures(table, axes["x"], axes["y"]), name)
    return images, captions


def _stock(table: Table, lookup: Lookup) -> dict[str, str]:
    """Heading -> what the model costs without this package."""
    costs = {}
    for column in table.columns:
        if not column.parts and column.metric.startswith(all_columns.COST) and column.metric != RETAIN_RATE:
            value = lookup.stock(table.rows[0], column)
            if value is not None:
                costs[column.heading] = column.unit.write(value.number, value.number)
    return costs


def _analyses(loaded: LoadedConfig, runs: RunStore) -> dict[str, tuple[bytes, str]]:
    """Name -> image of an analysis of the same model and data, and the id of its run."""
    config = loaded.config
    same = {tags.MODEL: tags.short_name(config.model.source), tags.DATA: tags.data_name(config.data)}
    images: dict[str, tuple[bytes, str]] = {}
    for run in runs.of_kind("analysis"):
        missing = [name for name in config.report.analysis if name not in images]
        if not missing:
            break
        if run.info.status == FINISHED and same.items() <= run.data.tags.items():
            for name, content in _images(runs, run, missing).items():
                images[name] = (content, run.info.run_id)
    return {name: images[name] for name in config.report.analysis if name in images}


def _images(runs: RunStore, run: Run, names: Sequence[str]) -> dict[str, bytes]:
    """Name -> image, of the named ones that a run has."""
    stored = {artifact.path for artifact in runs.client.list_artifacts(run.info.run_id, "analysis")}
    images = {}
    folder = tempfile.mkdtemp()
    try:
        for name in (name for name in names if f"analysis/{name}.png" in stored):
            file = runs.client.download_artifacts(run.info.run_id, f"analysis/{name}.png", folder)
            images[name] = Path(file).read_bytes()
    finally:
        shutil.rmtree(folder)
    return images


def _show(request: Request, report: Report, files: Sequence[str]) -> None:
    """Print the table, what is missing, and where everything is."""
    table = report.table
    rows = [(row.name, *(cell.text for cell in cells)) for row, cells in zip(table.rows, table.cells, strict=True)]
    print_table(report.title, ("", *(column.heading for column in table.columns)), rows)
    if report.gaps:
        print("\nmissing")
        print("\n".join(line for gap in report.gaps for line in _gap_lines(gap)))
    print(f"\nwritten to {request.folder}: {', '.join(files)}")
    uri = request.loaded.config.tracking.uri
    if not uri.startswith("http"):
        print(f"MLflow: {mlflow_ui(uri)}")
    ids = report.run_ids
    print(f"side by side: {report.links.comparison(ids) if len(ids) > 1 else report.links.experiment}")


def _gap_lines(gap: Gap) -> list[str]:
    command = f": {gap.command}" if gap.command else ""
    return [f"  {gap.reason}{command}", *(f"    {cells}" for cells in gap.cells)]
