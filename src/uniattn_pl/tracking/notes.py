"""Descriptions of runs and models on MLflow's pages: Markdown that links what belongs together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from uniattn_pl.tracking.tags import DATA, MACHINE, MODEL

LONGEST = 5000  # the shortest limit that the stores MLflow has had set a tag


def run_link(run_id: str, text: str) -> str:
    """A link to a run's page, from any other page of the same MLflow."""
    return f"[{text}](#/runs/{run_id})"


def linked(name: str, run_id: str | None) -> str:
    """A name, with a link where the run behind it is known."""
    return f"`{name}`" if run_id is None else run_link(run_id, name)


def fit_note(what: str, *, sweep: str | None, teacher: str | None) -> str:
    """Describe a fit.

    Args:
        what: in a line.
        sweep: the run of the sweep that it is a point of.
        teacher: what it learns from, as `linked`.
    """
    lines = [what]
    if sweep is not None:
        lines.append(f"A point of {run_link(sweep, 'this sweep')}.")
    if teacher is not None:
        lines.append(f"Distilled from {teacher}.")
    return "\n\n".join(lines)


def results_note(about: str, table: Sequence[Sequence[str]], lines: Iterable[str], plan: str, code: str) -> str:
    """Describe a finished fit: what it is, its table, its plan, and how its model is loaded.

    Args:
        about: as `fit_note`.
        table: rows of cells, the first of headings.
        lines: what else came out, in words.
        plan: drawn.
        code: Python that loads the model.
    """
    parts = [about, markdown_table(table), "\n\n".join(lines), f"```python\n{code}```", f"```\n{plan}\n```"]
    note = "\n\n".join(part for part in parts if part)
    return note if len(note) <= LONGEST else "\n\n".join([*parts[:-1], "`plan.txt` among the artifacts has its plan."])


def measured_note(what: str, table: Sequence[Sequence[str]], rest: str) -> str:
    """Describe a benchmark of one model: what it is, its figures, and where the others are."""
    return "\n\n".join([what, markdown_table(table), rest])


def analysis_note(run_tags: Mapping[str, str], topics: Mapping[str, str]) -> str:
    """Describe an analysis by what it looked at: topic -> what that is."""
    what = f"Analysis of {run_tags[MODEL]} on rows of {run_tags[DATA]}, {run_tags[MACHINE]}."
    return "\n".join([what, "", *(f"- `analysis/{topic}.txt`: {about}" for topic, about in topics.items())])


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first of headings, as Markdown; numbers stand at the right."""
    if not rows:
        return ""
    head, *body = rows
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def sweep_note(best: str, loss: float) -> str:
    """Describe a sweep by its best point, as `linked`, and that one's held-out loss."""
    return f"The best point is {best}, with a held-out loss of {loss:.4f}; `table.txt` among the artifacts has all."


def loading_code(folder: str, dtype: str) -> str:
    """Python that loads a model folder in the dtype that it was saved in."""
    return (
        "import uniattn_pl\n"
        "from transformers import AutoTokenizer\n\n"
        f"model = uniattn_pl.load_model({json.dumps(folder)}, dtype={json.dumps(dtype)})\n"
        f"tokenizer = AutoTokenizer.from_pretrained({json.dumps(folder)})\n"
    )


def model_note(what: str, folder: str, dtype: str) -> str:
    """Describe a model that lies in a folder outside of MLflow."""
    return (
        f"{what}\n\nThe weights are in `{folder}`, and not in MLflow. They are loaded there by\n\n"
        f"```python\n{loading_code(folder, dtype)}```\n\nor, as text in and text out, by `mlflow.pyfunc.load_model`."
    )
