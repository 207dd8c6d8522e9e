"""lm-evaluation-harness tasks by name, on the hub's data or on local JSONL files with the hub's field names."""

from __future__ import annotations

import json
import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from uniattn_pl.config.published_sets import how_to_build
from uniattn_pl.data.data_files import read_file
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.evaluation.evaluation_results import fingerprint
from uniattn_pl.evaluation.subsample import choose_rows
from uniattn_pl.printed_commands import install

SPLITS = ("training_split", "validation_split", "test_split")
SUFFIX = ".jsonl"


@dataclass(frozen=True)
class OpenTask:
    """A task as asked for: the harness's own object (a group is one, a tag several), and its tasks by name."""

    name: str
    objects: list[Any]
    tasks: dict[str, Any]

    def rows(self, limit: int | None, sample: str, seed: int) -> dict[str, list[int]]:
        """The rows of each task to score, as `choose_rows`; stratified by answer where there are classes of them."""
        chosen = {}
        for name, task in self.tasks.items():
            docs = list(task.eval_docs)
            answers = _answers(task, docs) if sample == "stratified" else None
            chosen[name] = choose_rows(len(docs), limit, seed=seed, answers=answers)
        return chosen

    def sources(self, data_dir: str | None) -> list[str]:
        """Where its rows are: its folder in `data_dir`, else the names of the hub's data sets."""
        if data_dir is not None:
            return [str(Path(data_dir) / self.name)]
        return list(dict.fromkeys(str(task.config.dataset_path) for task in self.tasks.values()))

    def contents(self, rows: Mapping[str, list[int]], num_fewshot: int | None) -> str:
        """A hash of the rows' contents, and of the rows that examples are drawn from."""
        parts = []
        for name, task in self.tasks.items():
            docs = task.eval_docs
            examples = list(task.fewshot_docs()) if shots_of(task, num_fewshot) else []
            parts.append([name, [docs[row] for row in rows[name]], rows[name], examples])
        return fingerprint(parts)


def shots_of(task: Any, num_fewshot: int | None) -> int:
    """Examples in a task's prompts: as asked for or as its config says, which nothing overrides when it says 0."""
    configured = task.config.num_fewshot
    return int(configured or 0) if num_fewshot is None or configured == 0 else num_fewshot


def check_names(names: list[str]) -> None:
    """Check that the harness is there and has these tasks, groups or tags. Raises UserError with all problems."""
    available = task_manager().task_index
    problems = [
        f"evaluation.tasks: lm-evaluation-harness has no task '{name}'.{did_you_mean(name, available)} "
        "`lm_eval ls tasks` lists them."
        for name in names
        if name not in available
    ]
    if problems:
        raise UserError(*problems)


def open_task(name: str, *, data_dir: str | None, num_fewshot: int | None) -> OpenTask:
    """Load a task and its rows.

    Args:
        name: of a task, group or tag of the harness.
        data_dir: folder of TASK/SPLIT.jsonl, in place of the data set that the task names; tasks only.
        num_fewshot: examples in each prompt; None: as the task says.

    Raises:
        UserError: a file or field is missing, examples would come from the scored rows, or the hub has no data.
    """
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()  # files are read in a moment
    if data_dir is not None:
        return _local_task(name, Path(data_dir), num_fewshot)
    try:
        return _opened(name, name)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        raise UserError(
            f"evaluation.tasks: the data of '{name}' cannot be loaded ({_first_line(error)}). Without the hub, set "
            f"evaluation.data_dir to a folder with {name}/SPLIT{SUFFIX}, rows with the hub's field names."
        ) from error


@lru_cache(maxsize=1)
def task_manager() -> Any:
    """The harness's index of its tasks; reading it takes seconds, so once. Raises UserError without the package."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UserError(
            f"evaluation.tasks needs lm-evaluation-harness; install it with: {install('uniattn-pl[evaluation]')}"
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it explains its defaults at length
    return TaskManager()


def _opened(name: str, spec: str) -> OpenTask:
    loaded = task_manager().load([spec])
    tasks, groups = loaded["tasks"], loaded["groups"]
    return OpenTask(name, [groups[name]] if name in groups else list(tasks.values()), tasks)


def _local_task(name: str, data_dir: Path, num_fewshot: int | None) -> OpenTask:
    """The harness's own task (prompt, choices, metrics) on rows from files."""
    entry = task_manager().task_index[name]
    config = entry.cfg or {}
    if not any(config.get(split) for split in SPLITS):
        raise UserError(
            f"evaluation.tasks: '{name}' is a group, or names no splits; with evaluation.data_dir, list single tasks."
        )
    folder = data_dir / name
    if not folder.is_dir():
        raise UserError(_no_folder(folder, data_dir))
    files = {path.stem: path for path in sorted(folder.glob(f"*{SUFFIX}"))}
    scored = config.get("test_split") or config.get("validation_split")
    if scored not in files:
        raise UserError(
            f"evaluation.data_dir: '{name}' is scored on its split '{scored}', and there is no file "
            f"'{folder / f'{scored}{SUFFIX}'}' (there: {', '.join(files) or 'none'})."
            f"{how_to_build(f'{name}/{scored}{SUFFIX}')}"
        )
    examples = _examples_split(config, files, str(scored), num_fewshot, folder)
    rows = {split: _rows(path) for split, path in files.items()}

    present = {split: config.get(split) if config.get(split) in files else None for split in SPLITS}
    try:
        with TemporaryDirectory() as temporary:
            spec = Path(temporary) / f"{name}.yaml"
            spec.write_text(
                _local_config(name, entry.yaml_path, files, temporary, {**present, "fewshot_split": examples})
            )
            task = _opened(name, str(spec))
    except Exception as error:  # whatever a prompt function does with rows it does not know
        raise UserError(f"{_no_fit(name, files[str(scored)])} ({_first_line(error)}).") from error
    for split in dict.fromkeys((str(scored), examples) if num_fewshot else (str(scored),)):
        _check_rows(task.tasks[name], files[split], rows[split])
    return task


def _local_config(
    name: str, installed: Path, files: Mapping[str, Path], cache: str, splits: Mapping[str, str | None]
) -> str:
    """The installed task with other data; its prompt, choices and metrics stay the harness's own."""
    data = {split: str(path.resolve()) for split, path in files.items()}
    changes = {
        "include": str(installed),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,  # the hub's configuration would be looked for in the files
        "dataset_kwargs": {"data_files": data, "cache_dir": cache, "keep_in_memory": True},
        **splits,
    }
    return yaml.safe_dump(changes)


def _examples_split(
    config: Mapping[str, Any], files: Mapping[str, Path], scored: str, num_fewshot: int | None, folder: Path
) -> str:
    """The split that few-shot examples come from: the task's own where its file is there, never the scored one."""
    for split in (config.get("fewshot_split"), config.get("training_split"), config.get("validation_split")):
        if split in files and split != scored:
            return str(split)
    if num_fewshot or (num_fewshot is None and config.get("num_fewshot")):
        raise UserError(
            f"evaluation.num_fewshot: '{folder}' has no rows for examples but those that are scored; "
            f"add a file train{SUFFIX}, or set evaluation.num_fewshot=0."
        )
    return scored


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    for record in read_file(path):
        if record.problem or not isinstance(record.value, dict):
            raise UserError(f"{record.place()}: {record.problem or 'expected an object with fields'}.")
        try:
            json.dumps(record.value, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:  # half a character, which JSON can say and no tokenizer can read
            raise UserError(f"{record.place()}: {error}.") from error
        rows.append(record.value)
    if not rows:
        raise UserError(f"evaluation.data_dir: '{path}' has no rows.")
    return rows


def _check_rows(task: Any, path: Path, rows: list[dict[str, Any]]) -> None:
    """Render each row as it is in the file: a table of all rows would hide a field that one row lacks."""
    if task.config.process_docs is not None:
        return  # the task's prompts are for processed rows
    for number, row in enumerate(rows, start=1):
        try:
            text = task.doc_to_text(row)
            if not isinstance(text, int):  # else the choices are prompts, and the answer is what completes them
                _check_answer(task, row)
        except Exception as error:
            raise UserError(
                f"{_no_fit(task.config.task, path)}: in row {number}, {_first_line(error)}; "
                f"its fields are {', '.join(row)}."
            ) from error


def _check_answer(task: Any, row: dict[str, Any]) -> None:
    """Raise when the answer is none of the choices: the harness takes a missing field's name for the answer itself."""
    answer = task.doc_to_target(row)
    if task.OUTPUT_TYPE != "multiple_choice":
        return
    choices = task.doc_to_choice(row)
    for one in answer if isinstance(answer, list) else [answer]:
        if one not in (choices if isinstance(one, str) else range(len(choices))):
            raise ValueError(f"its answer is {one!r}, which is none of {choices}")


def _no_fit(name: str, path: Path) -> str:
    return f"evaluation.data_dir: the rows of '{path}' are not as '{name}' on the hub"


def _no_folder(folder: Path, data_dir: Path) -> str:
    if not data_dir.is_dir():
        way_out = f"set it to null to take the hub's data.{how_to_build(folder.name)}"
        return f"evaluation.data_dir: there is no folder '{data_dir}'; {way_out}"
    names = sorted(entry.name for entry in data_dir.iterdir() if entry.is_dir())
    near = did_you_mean(folder.name, names)
    there = f"(there: {', '.join(names) or 'none'})"
    return f"evaluation.data_dir: there is no folder '{folder}' {there}.{near}{how_to_build(folder.name)}"


def _answers(task: Any, docs: list[dict[str, Any]]) -> list[Hashable] | None:
    """The right answer of each row, or None where answers are no classes."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    answers = [task.doc_to_target(doc) for doc in docs]
    return answers if all(isinstance(answer, Hashable) for answer in answers) else None


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"there is no field {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
