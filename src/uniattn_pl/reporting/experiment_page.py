"""The description of an MLflow experiment, at the top of its page: the best fit at each budget of KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from uniattn_pl.display.figure_style import pareto_front
from uniattn_pl.redaction import redact
from uniattn_pl.reporting.tracked_runs import FINISHED, RunStore
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.metric_names import FINAL_LOSS, RETAIN_RATE

if TYPE_CHECKING:
    from mlflow.entities import Run

LONGEST_TAG = 5000  # the shortest limit of the stores MLflow has had
HEAD = ("KV cache", "fit", "architecture", "held-out loss")


def describe_experiment(runs: RunStore) -> None:
    """Write which finished fit is the best at each budget, of every model and data, as the experiment's description.

    A description that somebody wrote by hand stays as it is.
    """
    from mlflow.exceptions import MlflowException

    try:
        experiment = runs.client.get_experiment(runs.experiment_id)
        own = experiment.tags.get(tags.DESCRIBED) == experiment.tags.get(tags.NOTE)
        text = described(runs.of_kind("fit"), runs.experiment_id)
        if not own or not text:
            return
        for key in (tags.NOTE, tags.DESCRIBED):
            runs.client.set_experiment_tag(runs.experiment_id, key, text)
    except (MlflowException, OSError) as error:
        print(f"the experiment has no description in MLflow, which does not take it: {redact(str(error))}")


def described(fits: Sequence[Run], experiment_id: str) -> str:
    """Markdown: of each model and data the fits that no other beats in loss and cache; as much as a tag may have."""
    ended = [
        run for run in fits if run.info.status == FINISHED and {FINAL_LOSS, RETAIN_RATE} <= run.data.metrics.keys()
    ]
    parts: list[str] = []
    for subject, group in groupby(sorted(ended, key=_subject), key=_subject):
        part = "\n".join(_table(subject, list(group), experiment_id))
        if len("\n\n".join([*parts, part])) > LONGEST_TAG:
            break
        parts.append(part)
    return "\n\n".join(parts)


def _subject(run: Run) -> tuple[str, str]:
    return run.data.tags.get(tags.MODEL, ""), run.data.tags.get(tags.DATA, "")


def _table(subject: tuple[str, str], fits: Sequence[Run], experiment_id: str) -> Iterator[str]:
    """The first line has the answer: it is all that MLflow shows before the description is opened."""
    points = {run.info.run_id: (run.data.metrics[RETAIN_RATE], run.data.metrics[FINAL_LOSS]) for run in fits}
    best = {
        cost: next(run for run in fits if points[run.info.run_id] == (cost, loss))
        for cost, loss in sorted(pareto_front(list(points.values())), reverse=True)
    }
    short = " · ".join(f"{cost:.0%} {_name(run)} {run.data.metrics[FINAL_LOSS]:.3f}" for cost, run in best.items())
    yield f"**Best loss by KV cache**: {short} ({' on '.join(subject)}, {len(fits)} fits)"
    yield ""
    yield f"| {' | '.join(HEAD)} |"
    yield "|---|---|---|---|"
    for cost, run in best.items():
        link = f"[{_name(run)}](#/experiments/{experiment_id}/runs/{run.info.run_id})"
        architecture = run.data.tags.get(tags.ARCHITECTURE, "")
        yield f"| {cost:.1%} | {link} | {architecture} | {run.data.metrics[FINAL_LOSS]:.3f} |"


def _name(run: Run) -> str:
    return (run.info.run_name or run.info.run_id).replace("|", "\\|")
