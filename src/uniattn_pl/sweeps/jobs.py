"""The jobs of a sweep: the fit of each point, then, where its experiment asks for one, the evaluation of its model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from uniattn_pl.config.sections.measuring_sections import EvaluationConfig
from uniattn_pl.errors import UserError
from uniattn_pl.evaluation.evaluation_results import fingerprint
from uniattn_pl.evaluation.scored_contents import scored_contents
from uniattn_pl.resilience.identity import Identity, digests_of
from uniattn_pl.sweeps.point_state import PointState
from uniattn_pl.sweeps.sweep_point import Point
from uniattn_pl.sweeps.view import result_of

FIT, EVALUATE = "fit", "evaluate"


@dataclass(frozen=True)
class Job:
    """One piece of work, which one worker does at a time; `command` is what it runs."""

    key: str
    point: Point
    command: str

    @property
    def needs(self) -> str | None:
        """Key of the point whose model it begins with."""
        return self.point.teacher if self.command == FIT else self.point.key


def _evaluation_of(point: Point, identity: Identity) -> Job | None:
    """The evaluation of a point, with another key for other options or rows; None where nothing is to be evaluated."""
    options = point.loaded.config.evaluation
    if not options.tasks and not options.probes:
        return None
    contents = scored_contents(options, digests_of(identity))
    deciding = _deciding_options(options) | ({"contents": contents} if contents else {})
    return Job(f"{point.key}-{fingerprint(deciding)[:12]}", point, EVALUATE)


def _deciding_options(options: EvaluationConfig) -> dict[str, object]:
    """The options that decide an evaluation's results; rows are scored alike in batches of any size."""
    return {key: value for key, value in dataclasses.asdict(options).items() if key != "batch_size"}


def check_evaluations(points: Sequence[Point], *, data: bool) -> None:
    """Check what evaluations need before hours of fits come first; `data`: read the rows, too.

    Raises:
        UserError: there is no such task, or its rows cannot be had; with the problems of all points.
    """
    from uniattn_pl.evaluation.tasks import check_names, open_task

    evaluations = [point.loaded.config.evaluation for point in points]
    tasks = {(task, e.data_dir, e.num_fewshot) for e in evaluations for task in e.tasks}
    if not tasks:
        return
    check_names(sorted({name for name, _, _ in tasks}))
    problems: list[str] = []
    for name, folder, shots in sorted(tasks, key=str) if data else ():
        try:
            open_task(name, data_dir=folder, num_fewshot=shots)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*dict.fromkeys(problems))


def jobs_of(points: Sequence[Point], identities: Mapping[str, Identity] = MappingProxyType({})) -> dict[str, Job]:
    """Every job by its key, in the order of the points; `identities` say what each point rests on, by its key."""
    pairs = ((Job(point.key, point, FIT), _evaluation_of(point, identities.get(point.key, {}))) for point in points)
    jobs = [job for pair in pairs for job in pair if job is not None]
    return {job.key: job for job in jobs}


def due(jobs: Mapping[str, Job], states: Mapping[str, PointState], folders: Mapping[str, Path]) -> list[str]:
    """Keys of what can be done now and here: an evaluation needs a fitted model, which may be on another machine.

    So does a fit that learns from a point.
    """
    return [
        key
        for key, job in jobs.items()
        if job.needs is None or (states[job.needs].state == "finished" and result_of(folders[job.needs]) is not None)
    ]


def elsewhere(jobs: Mapping[str, Job], states: Mapping[str, PointState], folders: Mapping[str, Path]) -> list[str]:
    """Keys of what can be done only on another machine, where the model is that it needs."""
    due_here = {*due(jobs, states, folders)}
    return [
        key
        for key, job in jobs.items()
        if key not in due_here and job.needs is not None and states[job.needs].place is not None
    ]


def joined(jobs: Mapping[str, Job], states: Mapping[str, PointState]) -> dict[str, PointState]:
    """The state of each point in one word, from those of its jobs."""
    evaluations = {job.point.key: states[key] for key, job in jobs.items() if job.command == EVALUATE}
    fits = {key: job for key, job in jobs.items() if job.command == FIT}
    return {key: _joined(_fit_state(job, states[key]), evaluations.get(key)) for key, job in fits.items()}


def _fit_state(job: Job, state: PointState) -> PointState:
    """The state of a fit; what was never tried, since its teacher is not there yet, waits."""
    untried = job.needs is not None and state.state == "failed" and not state.failures
    return dataclasses.replace(state, state="waiting") if untried else state


def _joined(fit: PointState, evaluation: PointState | None) -> PointState:
    if fit.state != "finished" or evaluation is None or evaluation.state == "finished":
        return fit
    word = "evaluating" if evaluation.state == "running" else evaluation.state
    if word != "evaluating" and not evaluation.failures:
        word = "to evaluate"
    error = evaluation.error and f"evaluation: {evaluation.error}"
    return dataclasses.replace(fit, state=word, error=error, failures=evaluation.failures)
