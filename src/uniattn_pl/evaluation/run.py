"""One evaluation from config to table: each task and probe measured once, kept in a folder, and logged to MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from datasets.utils.logging import disable_progress_bar
from rich.console import Console

from uniattn_pl.commands.tables import print_table, table_text
from uniattn_pl.config import LoadedConfig
from uniattn_pl.data import InstructionDataModule
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation import probes
from uniattn_pl.evaluation.results import Figure, Result, ResultFiles
from uniattn_pl.evaluation.retrieval import retrieval
from uniattn_pl.evaluation.subject import Subject
from uniattn_pl.evaluation.tasks import open_task
from uniattn_pl.evaluation.tracking import check_store, track
from uniattn_pl.files import atomic_file, file_digest
from uniattn_pl.modeling import unmodified_copy
from uniattn_pl.training.progress import ProgressReporter

FOLDER = "evaluation"
COLUMNS = ("task", "metric", "value", "95 % interval", "rows")
DETAIL = "_depth_"  # figures that are in the files, and too many for a table


def evaluate(loaded: LoadedConfig, subject: Subject, *, retain_rate: float | None) -> list[Result]:
    """Measure the tasks and probes of `loaded.config.evaluation`; what an earlier, killed run has finished is kept.

    Writes results.json and table.txt to RUN/evaluation and the figures to the fit's MLflow run, or, for a model that
    is no run's, to the config's run folder and a run of its own.

    Raises:
        UserError: the data, the model or the tracking store cannot be had as asked for.
    """
    console = Console()
    console.print(f"evaluating {subject}", highlight=False, markup=False, soft_wrap=True)
    check_store(loaded, subject)
    disable_progress_bar()  # of files that are read in a moment
    folder = (subject.run or Path(loaded.config.trainer.default_root_dir)) / FOLDER
    if folder.is_file():
        raise UserError(f"'{folder}' is a file, where the folder of results is to be.")
    session = _Session(loaded, subject, retain_rate, console)
    files, results = ResultFiles(folder), []
    for part in session.parts():
        settings = {"model": subject.identity(loaded), "h2o": retain_rate, **part.settings}
        found = files.find(part.name, settings)
        if found is None:
            found = part.measure()
            files.keep(part.name, settings, found)
        else:
            console.print(f"{part.name}: measured before", highlight=False, markup=False)
        results += found
    _write(results, subject, folder)
    track(loaded, subject, results, folder, retain_rate)
    return results


@dataclass(frozen=True)
class _Part:
    """One task or probe; `settings` is all that its results depend on besides the model."""

    name: str
    settings: dict[str, Any]
    measure: Callable[[], list[Result]]


class _Session:
    """The model, loaded only when something is left to measure, and the parts of the evaluation."""

    def __init__(self, loaded: LoadedConfig, subject: Subject, retain_rate: float | None, console: Console) -> None:
        self.loaded, self.subject, self.retain_rate, self.console = loaded, subject, retain_rate, console
        self.options = loaded.config.evaluation

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        model, tokenizer = self.subject.load(self.loaded)
        if self.retain_rate is not None and not hasattr(model.get_decoder(), "layer_plan"):
            model = unmodified_copy(model)
        return model, tokenizer

    @cached_property
    def harness_model(self) -> Any:
        from uniattn_pl.evaluation.harness import harness_model

        model, tokenizer = self._loaded
        return harness_model(model, tokenizer, batch_size=self.options.batch_size, retain_rate=self.retain_rate)

    def parts(self) -> list[_Part]:
        """All that is asked for; opens every task first, so that wrong input shows before anything is measured."""
        of_probe = {"held_out": self._held_out, "positions": self._positions, "retrieval": self._retrieval}
        return [*map(self._task, dict.fromkeys(self.options.tasks)), *(of_probe[p]() for p in self.options.probes)]

    def _task(self, name: str) -> _Part:
        import lm_eval

        options = self.options
        task = open_task(name, data_dir=options.data_dir, num_fewshot=options.num_fewshot)
        rows = task.rows(options.limit, options.sample, options.sample_seed)
        settings = {
            "harness": lm_eval.__version__,
            "num_fewshot": options.num_fewshot,
            "rows": task.contents(rows, options.num_fewshot),
        }

        def measure() -> list[Result]:
            from uniattn_pl.evaluation.harness import score_task

            count = sum(map(len, rows.values()))
            self.console.print(f"{name}: {count} rows", highlight=False, markup=False)
            return score_task(self.harness_model, task, rows, options.num_fewshot)

        return _Part(name, settings, measure)

    def _held_out(self) -> _Part:
        config = self.loaded.config

        def measure() -> list[Result]:
            model, tokenizer = self._loaded
            size = 1 if self.retain_rate is not None else self.options.batch_size
            data = InstructionDataModule(
                config.data, tokenizer, batch_size=size, micro_batch_size=size, eval_batch_size=size, seed=config.seed
            )
            data.setup()
            batches = data.validation_batches(self.options.num_samples, size)
            if self.retain_rate is not None:
                return [probes.compressed_held_out(model, batches, self.retain_rate)]
            with self._progress("held_out") as progress:
                return [probes.held_out(model, batches, progress.update)]

        source = config.data.validation_source or config.data.source
        settings = {"data": vars(config.data), "file": _stamp(source), "num_samples": self.options.num_samples}
        return _Part("held_out", settings, measure)

    def _positions(self) -> _Part:
        if self.retain_rate is not None:
            raise UserError("evaluation.probes: 'positions' has no prompt that --h2o could compress; leave out one.")
        text, options = str(self.options.text), self.options
        choice: dict[str, Any] = {
            "window": max(options.lengths),
            "limit": options.limit,
            "seed": options.sample_seed,
        }

        def measure() -> list[Result]:
            with self._progress("positions") as progress:
                return [probes.loss_by_position(*self._loaded, Path(text), **choice, progress=progress.update)]

        return _Part("positions", {"text": _stamp(text), **choice}, measure)

    def _retrieval(self) -> _Part:
        settings: dict[str, Any] = {
            "lengths": sorted(set(self.options.lengths)),
            "trials": self.options.trials,
            "seed": self.options.sample_seed,
        }

        def measure() -> list[Result]:
            with self._progress("retrieval") as progress:
                return retrieval(*self._loaded, **settings, retain_rate=self.retain_rate, progress=progress.update)

        return _Part("retrieval", settings, measure)

    def _progress(self, label: str) -> ProgressReporter:
        return ProgressReporter(label, self.console)


def _stamp(source: str) -> Any:
    """Content of a local file as a hash; the name of anything else."""
    path = Path(source).expanduser()
    return file_digest(path) if path.is_file() else source


def _write(results: list[Result], subject: Subject, folder: Path) -> None:
    """The table on screen and as a file, and everything as JSON."""
    rows = [
        (result.name, metric, f"{figure.value:.4f}", _interval(figure), str(result.rows))
        for result in results
        for metric, figure in result.figures.items()
        if DETAIL not in metric
    ]
    title = f"Evaluation of {subject}"
    print_table(title, COLUMNS, rows)
    contents: Mapping[str, str] = {
        "results.json": json.dumps({"model": str(subject), "results": [r.to_dict() for r in results]}, indent=1),
        "table.txt": "\n".join(table_text(title, COLUMNS, rows)) + "\n",
    }
    for name, text in contents.items():
        with atomic_file(folder / name) as file:
            file.write(text.encode())
    print(f"\nwritten to {folder}")


def _interval(figure: Figure) -> str:
    return "" if figure.low is None else f"{figure.low:.4f} to {figure.high:.4f}"
