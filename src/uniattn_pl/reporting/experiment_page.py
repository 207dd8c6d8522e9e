"""The description of an MLflow experiment, at the top of its page: the best fit at each budget of KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from uniattn_pl.display.figure_style import pareto_front
from uniattn_pl.redaction import redact
from uniattn_pl.reporting.tracked_runs import FINISHED, RunStore
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.data_inputs import CONTEXT, VALIDATION
from uniattn_pl.tracking.metric_names import FINAL_LOSS, RETAIN_RATE

if TYPE_CHECKING:
    from mlflow.entities import Run

HEAD = ("KV cache", "fit", "architecture", "held-out loss")


@dataclass(frozen=True)
class Fit:
    """A finished fit, as far as the description tells of it.

    Attributes:
        subject: model, data and the digest of its held-out rows: losses of other rows do not compare.
        cache: bytes over the unmodified model's.
        loss: held-out, of the final model.
    """

    run_id: str
    name: str
    architecture: str
    subject: tuple[str, str, str]
    cache: float
    loss: float


def describe_experiment(runs: RunStore) -> None:
    """Write which finished fit is the best at each budget, of every model and data, as the experiment's description.

    A description that somebody wrote by hand stays as it is.
    """
    from mlflow.exceptions import MlflowException

    try:
        experiment = runs.client.get_experiment(runs.experiment_id)
        own = experiment.tags.get(tags.DESCRIBED) == experiment.tags.get(tags.NOTE)
        text = described(_fits(runs), runs.experiment_id)
        if not own or not text:
            return
        for key in (tags.NOTE, tags.DESCRIBED):
            runs.client.set_experiment_tag(runs.experiment_id, key, text)
    except (MlflowException, OSError) as error:
        print(f"the experiment has no description in MLflow, which does not take it: {redact(str(error))}")


def described(fits: Sequence[Fit], experiment_id: str) -> str:
    """Markdown: of each model and rows the fits that no other beats in loss and cache; as much as a tag may have."""
    parts: list[str] = []
    for _, group in groupby(sorted(fits, key=lambda fit: fit.subject), key=lambda fit: fit.subject):
        part = "\n".join(_table(list(group), experiment_id))
        if len("\n\n".join([*parts, part])) > tags.LONGEST:
            break
        parts.append(part)
    return "\n\n".join(parts)


def _fits(runs: RunStore) -> list[Fit]:
    found = []
    for run in runs.of_kind("fit"):
        loss, cache = runs.value(run, FINAL_LOSS, None), runs.value(run, RETAIN_RATE, None)
        if run.info.status == FINISHED and loss is not None and cache is not None:
            name = (run.info.run_name or run.info.run_id).replace("|", "\\|")
            said = run.data.tags
            subject = (said.get(tags.MODEL, ""), said.get(tags.DATA, ""), _held_out(run))
            found.append(Fit(run.info.run_id, name, said.get(tags.ARCHITECTURE, ""), subject, cache, loss))
    return found


def _held_out(run: Run) -> str:
    """Digest of the rows that were held out; "" of a run that logged none."""
    inputs = [] if run.inputs is None else run.inputs.dataset_inputs
    kept = (one for one in inputs if any((tag.key, tag.value) == (CONTEXT, VALIDATION) for tag in one.tags))
    return next((one.dataset.digest for one in kept), "")


def _table(fits: Sequence[Fit], experiment_id: str) -> Iterator[str]:
    """The first line has the answer: it is all that MLflow shows before the description is opened."""
    front = pareto_front([(fit.cache, fit.loss) for fit in fits])
    best = [next(fit for fit in fits if (fit.cache, fit.loss) == point) for point in reversed(front)]
    short = " · ".join(f"{fit.cache:.0%} {fit.name} {fit.loss:.3f}" for fit in best)
    model, data, digest = fits[0].subject
    rows = f", held-out rows {digest}" if digest else ""
    count = "1 fit" if len(fits) == 1 else f"{len(fits)} fits"
    yield f"**Best loss by KV cache**: {short} ({model} on {data}{rows}, {count})"
    yield ""
    yield f"| {' | '.join(HEAD)} |"
    yield "|---|---|---|---|"
    for fit in best:
        link = f"[{fit.name}](#/experiments/{experiment_id}/runs/{fit.run_id})"
        yield f"| {fit.cache:.1%} | {link} | {fit.architecture} | {fit.loss:.3f} |"
