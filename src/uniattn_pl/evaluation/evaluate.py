"""One evaluation from config to table: each task and probe measured once, kept in a folder, and logged to MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from uniattn_pl.config import LoadedConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.data.open_rows import data_module
from uniattn_pl.data.told_rows import tell_rows
from uniattn_pl.display.progress import ProgressReporter
from uniattn_pl.display.text_table import print_table, table_text
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation import probes
from uniattn_pl.evaluation.beside_encoders import check_asked
from uniattn_pl.evaluation.divergence_probe import NAME, divergence
from uniattn_pl.evaluation.evaluated_model import LoadedModel, Part
from uniattn_pl.evaluation.evaluation_results import Estimate, Result, ResultFiles
from uniattn_pl.evaluation.mlflow_logging import check_store, track
from uniattn_pl.evaluation.open_server import OpenServer
from uniattn_pl.evaluation.retrieval import retrieval
from uniattn_pl.evaluation.scored_contents import file_or_name
from uniattn_pl.evaluation.subject import Subject, find_subject
from uniattn_pl.evaluation.tasks import open_task
from uniattn_pl.evaluation.variants import Variant, variants_of
from uniattn_pl.files import atomic_file
from uniattn_pl.resilience.identity import HELD_OUT_ROWS, changes
from uniattn_pl.resilience.manifest import Manifest
from uniattn_pl.tracking.data_inputs import EVALUATION, DataInput

FOLDER = "evaluation"
COLUMNS = ("task", "metric", "value", "95 % interval", "rows")
BESIDE = "original"
DETAIL = "_depth_"  # figures that are in the files, and too many for a table


def evaluate(
    loaded: LoadedConfig,
    subject: Subject,
    *,
    retain_rate: float | None,
    server: OpenServer | None = None,
    beside: Subject | None = None,
) -> list[Result]:
    """Measure the tasks and probes of `loaded.config.evaluation`; what an earlier, killed run has finished is kept.

    With a `server` what that says is measured, as `NAME_served`, with the subject's tokenizer and into its folder.

    Writes results.json and table.txt to RUN/evaluation and the figures to the fit's MLflow run, or, for a model that
    is no run's, to the config's run folder and a run of its own.

    Args:
        beside: another model, whose figures stand in the table beside those of the subject, measured on the same.

    Raises:
        UserError: the data, the model or the tracking store cannot be opened as the config says.
    """
    console = Console()
    where = "" if server is None else f", as {server.url} serves '{server.model}'"
    console.print(f"evaluating {subject}{where}", highlight=False, markup=False, soft_wrap=True)
    check_store(loaded, subject)
    folder = (subject.run or Path(loaded.config.trainer.default_root_dir)) / FOLDER
    if folder.is_file():
        raise UserError(f"'{folder}' is a file, where the folder of results is to be.")
    model = LoadedModel(loaded, subject, console, ResultFiles(folder), server)
    variants = variants_of(loaded.config.evaluation, retain_rate, served=server is not None)
    check_asked(loaded.config.evaluation, variants, model.tokenizer)
    parts = _Parts(model).all()
    model.check(variants)
    results = [result for variant in variants for result in model.measured(variant, parts)]
    others = [] if beside is None else _measured_beside(loaded, beside, console, folder)
    _write(results, subject, folder, others)
    track(loaded, subject, results, folder, scored=model.scored, retain_rates=model.retain_rates(variants))
    return results


def _measured_beside(loaded: LoadedConfig, beside: Subject, console: Console, folder: Path) -> list[Result]:
    """What another model scores on the same tasks and probes; kept as the subject's own results are."""
    console.print(f"beside it: {beside}", highlight=False, markup=False, soft_wrap=True)
    model = LoadedModel(loaded, beside, console, ResultFiles(folder))
    return model.measured(Variant(), _Parts(model).all())


class _Parts:
    """Makes the parts of an evaluation: the tasks and probes that its config asks for."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.loaded, self.console = model, model.loaded, model.console
        self.options = model.loaded.config.evaluation

    def all(self) -> list[Part]:
        """All that is asked for; opens every task first, so that wrong input shows before anything is measured."""
        of_probe = {
            "held_out": self._held_out,
            "divergence": self._divergence,
            "positions": self._positions,
            "retrieval": self._retrieval,
        }
        return [*map(self._task, dict.fromkeys(self.options.tasks)), *(of_probe[p]() for p in self.options.probes)]

    def _task(self, name: str) -> Part:
        import lm_eval

        options = self.options
        task = open_task(name, data_dir=options.data_dir, num_fewshot=options.num_fewshot)
        rows = task.rows(options.limit, options.sample, options.sample_seed)
        settings = {
            "harness": lm_eval.__version__,
            "num_fewshot": options.num_fewshot,
            "rows": task.contents(rows, options.num_fewshot),
        }

        def measure(variant: Variant) -> list[Result]:
            from uniattn_pl.evaluation.harness import score_task

            self.console.print(f"{name}{variant.suffix}: {count} rows", highlight=False, markup=False)
            return score_task(self.model.harness(variant), task, rows, options.num_fewshot)

        count = sum(map(len, rows.values()))
        scored = DataInput.of(task.sources(options.data_dir), str(settings["rows"]), count, EVALUATION, name=name)
        return Part(name, settings, measure, scored=scored)

    def _held_out(self) -> Part:
        config, rows = self.loaded.config, self.options.held_out_rows or self.options.num_samples
        source = config.data.validation_source or config.data.split_source

        def measure(variant: Variant) -> list[Result]:
            self.console.print(f"held_out: rows of {source}", highlight=False, markup=False, soft_wrap=True)
            if variant.served:
                from uniattn_pl.evaluation.served_held_out import served_held_out

                return [served_held_out(self.model.harness(variant), self._batches(self.model.tokenizer, rows, 1))]
            model, tokenizer = self.model.of(variant)
            batches = self._batches(tokenizer, rows, 1 if variant.retain_rate is not None else self.options.batch_size)
            if variant.retain_rate is not None:
                return [probes.compressed_held_out(model, batches, variant.retain_rate)]
            with self._progress("held_out") as progress:
                return [probes.held_out(model, batches, progress.update)]

        settings = {"rows": self.model.rows[HELD_OUT_ROWS], "max_length": config.data.max_length, "num_samples": rows}
        settings |= self.model.row_template
        longest = ("data.max_length", config.data.max_length)
        return Part("held_out", settings, measure, longest=longest, scored=self.model.held_out)

    def _batches(self, tokenizer: Any, rows: int, size: int) -> list[dict[str, Any]]:
        """The first held-out rows of the experiment's data, so many together."""
        config, sizes = self.loaded.config, {"batch_size": size, "micro_batch_size": size, "eval_batch_size": size}
        data = data_module(config.data, tokenizer, seed=config.seed, original=self.model.original, **sizes)
        tell_rows(data.report, self.console)
        self._tell_other_rows(data)
        return data.validation_batches(rows, size)

    def _divergence(self) -> Part:
        config, rows = self.loaded.config, self.options.held_out_rows or self.options.num_samples
        reference = find_subject(self.options.reference or config.model.source, self.loaded)

        def measure(variant: Variant) -> list[Result]:
            self.console.print(f"{NAME}: from {reference}", highlight=False, markup=False, soft_wrap=True)
            model, tokenizer = self.model.of(variant)
            other, _ = reference.load(self.loaded)
            batches = self._batches(tokenizer, rows, self.options.batch_size)
            with self._progress(NAME) as progress:
                return [divergence(model, other.eval(), batches, progress.update)]

        settings = {
            "rows": self.model.rows[HELD_OUT_ROWS],
            "max_length": config.data.max_length,
            "num_samples": rows,
            "reference": reference.identity(self.loaded),
            **self.model.row_template,
        }
        longest = ("data.max_length", config.data.max_length)
        return Part(NAME, settings, measure, has_prompts=False, longest=longest, scored=self.model.held_out)

    def _tell_other_rows(self, data: InstructionDataModule) -> None:
        """Say so where a run is scored on other rows than those it was fitted with: both are called `held_out`."""
        run = self.model.subject.run
        manifest = None if run is None else Manifest.read(run)
        if run is not None and manifest is not None:
            rows = {HELD_OUT_ROWS: data.contents[HELD_OUT_ROWS]}
            for change in changes(rows, manifest.identity, run).values():
                line = f"held_out: not the rows that {run} was measured on as it was fitted: {change}"
                self.console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _positions(self) -> Part:
        text, options = str(self.options.text), self.options
        choice: dict[str, Any] = {
            "window": max(options.lengths),
            "limit": options.windows,
            "seed": options.sample_seed,
        }

        def measure(variant: Variant) -> list[Result]:
            with self._progress("positions") as progress:
                model, tokenizer = self.model.of(variant)
                return [probes.loss_by_position(model, tokenizer, Path(text), **choice, progress=progress.update)]

        settings, longest = {"text": file_or_name(text), **choice}, ("evaluation.lengths", max(options.lengths))
        scored = DataInput.of([text], str(settings["text"]), None, EVALUATION)
        return Part("positions", settings, measure, has_prompts=False, longest=longest, scored=scored)

    def _retrieval(self) -> Part:
        settings: dict[str, Any] = {
            "lengths": sorted(set(self.options.lengths)),
            "trials": self.options.trials,
            "seed": self.options.sample_seed,
        }

        def measure(variant: Variant) -> list[Result]:
            options = {**settings, "retain_rate": variant.retain_rate}
            with self._progress("retrieval") as progress:
                return retrieval(*self.model.of(variant), **options, progress=progress.update)

        return Part("retrieval", settings, measure, longest=("evaluation.lengths", max(self.options.lengths)))

    def _progress(self, label: str) -> ProgressReporter:
        return ProgressReporter(label, self.console)


def _write(results: list[Result], subject: Subject, folder: Path, others: list[Result]) -> None:
    """The table on screen and as a file, and everything as JSON; what another model scores beside the value."""
    known = {(other.name, metric): figure for other in others for metric, figure in other.figures.items()}

    def cells(result: Result, metric: str, figure: Estimate) -> tuple[str, ...]:
        other = known.get((result.name, metric))
        beside = () if not others else ("-" if other is None else f"{other.value:.4f}",)
        return (result.name, metric, *beside, f"{figure.value:.4f}", _interval(figure), str(result.rows))

    columns = (*COLUMNS[:2], BESIDE, *COLUMNS[2:]) if others else COLUMNS
    rows = [
        cells(result, metric, figure)
        for result in results
        for metric, figure in result.figures.items()
        if DETAIL not in metric
    ]
    title = f"Evaluation of {subject}"
    print_table(title, columns, rows)
    contents: Mapping[str, str] = {
        "results.json": json.dumps({"model": str(subject), "results": [r.to_dict() for r in results]}, indent=1),
        "table.txt": "\n".join(table_text(title, columns, rows)) + "\n",
    }
    for name, text in contents.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    print(f"\nwritten to {folder}")


def _interval(figure: Estimate) -> str:
    return "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"
