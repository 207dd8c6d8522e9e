"""The objective of a stage, as configured."""

from __future__ import annotations

from uniattn_pl.files import cache_folder
from uniattn_pl.resilience import ranks
from uniattn_pl.resilience.identity import MODEL, TEACHER, plain_digest
from uniattn_pl.training.experiment import Experiment
from uniattn_pl.training.fit_models import FitModels
from uniattn_pl.training.memory_estimate import learns_from_teacher
from uniattn_pl.training.objectives.distillation_objective import DistillationObjective
from uniattn_pl.training.objectives.objective import LabelObjective, Objective
from uniattn_pl.training.objectives.teacher import Teacher
from uniattn_pl.training.objectives.teacher_cache import TeacherCache

TEACHERS = "teachers"


def stage_objective(number: int, experiment: Experiment, models: FitModels, *, halves: bool) -> Objective:
    """What stage 1 or 2 minimises.

    Args:
        halves: the stage keeps frozen matrices in bfloat16.
    """
    training = experiment.config.training
    options = training.distillation
    if not learns_from_teacher(experiment.config, number):
        return LabelObjective(chunked=training.chunked_loss)
    teacher = Teacher(lambda: models.teacher(str(options.teacher)), halves=halves)
    return DistillationObjective(options, getattr(options, f"stage{number}"), teacher, _cache(experiment))


def _cache(experiment: Experiment) -> TeacherCache | None:
    options = experiment.config.training.distillation
    if not options.cache or options.top_k is None:
        return None
    about = {
        "teacher": ranks.broadcast(_digest_of_teacher(experiment) if ranks.rank() == 0 else None),
        "top_k": options.top_k,
        "temperature": options.temperature,
        "computed": [experiment.precision, experiment.config.model.dtype, experiment.config.training.precision],
    }
    return TeacherCache(
        cache_folder() / TEACHERS / plain_digest(about).hex(),
        top_k=options.top_k,
        temperature=options.temperature,
        limit_bytes=options.cache_limit_gib * 2**30,
        collective=experiment.strategy == "fsdp",
    )


def _digest_of_teacher(experiment: Experiment) -> str:
    model = experiment.config.model
    contents = experiment.identity.get(TEACHER) or experiment.identity.get(MODEL)
    # a hub's model whose commit is not known goes by its name
    return f"{model.source}@{model.revision}" if contents is None else contents.digest
