"""Tags by which runs are told apart and found again: what kind of run, of which model, data and plan."""

from __future__ import annotations

import getpass
import hashlib
from pathlib import Path, PurePath

from uniattn_pl.config.schema import ExperimentConfig
from uniattn_pl.config.sections.data_section import DataConfig
from uniattn_pl.plan import LayerPlan
from uniattn_pl.plan.mechanism import mechanism_of
from uniattn_pl.plan.saved_form import identity
from uniattn_pl.tracking.environment import describe_machine, git_state

KIND = "uniattn_pl.kind"  # fit, sweep, bench, analysis or evaluation
ARCHITECTURE = "uniattn_pl.architecture"
MODEL = "uniattn_pl.model"
DATA = "uniattn_pl.data"
PLAN = "uniattn_pl.plan"  # digest: a benchmark of a plan is one of every fit with that plan
MECHANISM = "uniattn_pl.mechanism"  # what the plan saves by, of `plan.roles.MECHANISMS`: runs are grouped by it
MACHINE = "uniattn_pl.machine"  # what it ran on: times of different ones do not compare
EXPERIMENT = "uniattn_pl.experiment"  # key of what a fit computes: a point of a sweep is found by it under any name
VARIANT = "uniattn_pl.variant"  # of a plan that goes beyond the fit's, as `drop_2`
FOLDER = "uniattn_pl.run_folder"
FINAL_MODEL = "uniattn_pl.final_model"  # its folder
RETAINED = "uniattn_pl.retained_cache"  # bytes of a long text's cache over the unmodified model's, as 62.5%
TEACHER = "uniattn_pl.teacher"  # what a fit is distilled from, as a short name
TEACHER_RUN = "uniattn_pl.teacher_run"  # the teacher's MLflow run, where it has one in this store
SWEEP = "uniattn_pl.sweep"  # of a point: the sweep's name
RANK = "uniattn_pl.rank_in_sweep"  # of a finished point by its held-out loss; 1 is the least
BEST = "uniattn_pl.best_of_sweep"  # true of one point of a sweep, false of the others
PARENT = "mlflow.parentRunId"  # MLflow's own: its pages nest runs by it
NOTE = "mlflow.note.content"  # MLflow's own: a description in Markdown, of a run or an experiment
LONGEST = 5000  # characters of a tag, the shortest limit of the stores MLflow has had
DESCRIBED = "uniattn_pl.description"  # of an experiment: what a report wrote into its note, so that others' stay
USER = "mlflow.user"  # MLflow's own, `Created by`
COMMIT = "mlflow.source.git.commit"  # MLflow's own
SOURCE = "mlflow.source.name"  # MLflow's own, a column of its table of runs
BASELINE = "baseline"  # architecture of a benchmark of the unmodified plan
STOCK = "stock"  # architecture of a benchmark of the model without this package


def describing(config: ExperimentConfig, kind: str, architecture: str) -> dict[str, str]:
    """The tags that every run has: kind, architecture, model and data, the latter two as short names."""
    return {
        KIND: kind,
        SOURCE: f"uniattn_pl {kind}",
        ARCHITECTURE: architecture,
        MODEL: short_name(config.model.source),
        DATA: data_name(config.data),
        MACHINE: describe_machine(),
        **code_and_user(),
    }


def code_and_user() -> dict[str, str]:
    """The commit of the code that runs, and who runs it, where that can be told."""
    state = git_state(Path.cwd()) or git_state(Path(__file__).parent)
    commit = {COMMIT: state["commit"]} if state is not None and state["commit"] else {}
    try:
        return commit | {USER: getpass.getuser()}
    except (OSError, KeyError):  # a process whose user has no name, as in containers
        return commit


def about(config: ExperimentConfig) -> tuple[str, str, str]:
    """What a figure says it is of: model, rows, machine."""
    return short_name(config.model.source), f"rows of {data_name(config.data)}", describe_machine()


def data_name(data: DataConfig) -> str:
    """The short name of what is trained on; of a mixture those of all its sources."""
    return short_name(data.source) if data.sources is None else "+".join(map(short_name, data.training_sources))


def short_name(source: str) -> str:
    """A source without its folders or its organisation."""
    return PurePath(source).name or source


def retained(rate: float) -> str:
    """A share of the cache as a tag, by which MLflow's pages group runs."""
    return f"{rate:.1%}"


def of_plan(plan: LayerPlan) -> dict[str, str]:
    """The tags that a run has of its plan."""
    return {PLAN: plan_digest(plan), MECHANISM: mechanism_of(plan)}


def plan_digest(plan: LayerPlan) -> str:
    """The same for equal plans, whatever architecture they came from."""
    return hashlib.sha256(identity(plan.rows).encode()).hexdigest()[:12]


def h2o_variant(rate: float) -> str:
    """Suffix of what is measured with each prompt's cache compressed to this fraction."""
    return f"h2o_{rate:g}"


SERVED_VARIANT = "served"  # suffix of what a server said


def drop_variant(count: int) -> str:
    """Suffix of what is measured with the attention of this many reuse layers dropped."""
    return f"drop_{count}"
