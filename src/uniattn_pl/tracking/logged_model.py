"""A fit's model as MLflow's logged model: it says what the model is and where it lies, and copies no weights.

MLflow has no logged model whose files lie elsewhere and that it can load (its external models it cannot). So what is
stored is an `MLmodel` file of a few lines, whose loader opens the model folder, and the same as Python to copy.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from uniattn_pl.tracking.model_registry import register
from uniattn_pl.tracking.notes import loading_code, model_note
from uniattn_pl.tracking.tags import FINAL_MODEL, NOTE

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.tracking import MlflowClient

LOADER = "uniattn_pl.inference.mlflow_loader"
PLACE_FILE, CODE_FILE = "place.json", "load.py"
OF_HELD_OUT = "final/"
OF_MODEL = (OF_HELD_OUT, "cost/", "eval/")  # a run's metrics that describe what comes out
NOT_IN_NAMES = str.maketrans(dict.fromkeys("/:.%\"'", "-"))  # of a logged model, which MLflow refuses


@dataclass(frozen=True)
class ModelRecord:
    """What MLflow is told of a model.

    Attributes:
        name: of the run.
        kind: MLflow's model type, which its pages filter by: the architecture.
        folder: the model folder, absolute.
        dtype: of its weights.
        params, tags: for people and filters.
        what: it is, in a line of Markdown.
        step: optimizer steps of the fit.
        held_out: name and digest of the rows that its losses are of.
        register_as: name in the registry, or None.
    """

    name: str
    kind: str
    folder: str
    dtype: str
    params: dict[str, str]
    tags: dict[str, str]
    what: str
    step: int
    held_out: tuple[str, str] | None
    register_as: str | None

    def to_dict(self, last_points: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Plain data for the journal, with those of the run's last points that describe the model."""
        of_model = [point for point in last_points if point["key"].startswith(OF_MODEL)]
        of_model.sort(key=lambda point: not point["key"].startswith(OF_HELD_OUT))  # pages show them in this order
        points = [_of_model(point, self.held_out) for point in of_model]
        return {**asdict(self), "name": self.name.translate(NOT_IN_NAMES), "metrics": points}


def _of_model(point: Mapping[str, Any], held_out: tuple[str, str] | None) -> dict[str, Any]:
    """A point as it was logged to the run, so that sending it again with the model makes no second one there."""
    kept = {name: point[name] for name in ("key", "value", "timestamp", "step", "data") if name in point}
    return kept | ({"data": list(held_out)} if held_out and point["key"].startswith(OF_HELD_OUT) else {})


def model_of(client: MlflowClient, run: Run) -> LoggedModel | None:
    """The logged model of a run, None where there is none."""
    filter_string = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string, max_results=1)
    return found[0] if found else None


def send_model(client: MlflowClient, run_id: str, operation: dict[str, Any]) -> None:
    """Create the logged model of a journaled record, or complete one that is there; register it where that is asked.

    Every part is compared with what the store has: a record that was sent halfway, or is sent again, makes no second
    model and no second version.
    """
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    model = model_of(client, run)
    note = model_note(operation["what"], operation["folder"], operation["dtype"])
    tags = {**operation["tags"], FINAL_MODEL: operation["folder"]}
    if model is None:
        model = client.create_logged_model(
            run.info.experiment_id,
            name=operation["name"],
            source_run_id=run_id,
            tags={**tags, NOTE: note},
            model_type=operation["kind"],
        )
    missing = {key: value for key, value in operation["params"].items() if key not in model.params}
    if missing:
        client.log_model_params(model.model_id, missing)
    if tags.items() - model.tags.items():  # else a note that somebody has edited stays
        client.set_logged_model_tags(model.model_id, {**tags, NOTE: note})
    _send_files(client, model, operation["folder"], operation["dtype"])
    outputs = [] if run.outputs is None else run.outputs.model_outputs
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, operation["step"])])
    sent = {(metric.key, metric.step) for metric in model.metrics or []}
    points = [point for point in operation["metrics"] if (point["key"], point["step"]) not in sent]
    if points:
        client.log_batch(run_id, [metric_of(point, model.model_id) for point in points])
    client.finalize_logged_model(model.model_id, "READY")
    if operation["register_as"] is not None:
        register(client, operation["register_as"], model, tags=tags, note=note)


def metric_of(point: Mapping[str, Any], model_id: str | None) -> Any:
    """A journaled point as MLflow's metric, of a model and of rows where it says so."""
    from mlflow.entities import Metric

    name, digest = point.get("data") or (None, None)
    plain = (point["key"], point["value"], point["timestamp"], point["step"])
    return Metric(*plain, model_id=model_id, dataset_name=name, dataset_digest=digest)


def _send_files(client: MlflowClient, model: LoggedModel, folder: str, dtype: str) -> None:
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    options = [ParamSpec("max_new_tokens", "long", 128), ParamSpec("temperature", "double", 0.0)]
    options.append(ParamSpec("instruction", "boolean", False))
    prompt, text = Schema([ColSpec("string")]), Schema([ColSpec("string")])
    described = Model(
        artifact_path=model.artifact_location,
        run_id=model.source_run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=ModelSignature(prompt, text, ParamSchema(options)),
    )
    described.add_flavor(
        "python_function", loader_module=LOADER, data=PLACE_FILE, python_version=platform.python_version()
    )
    with TemporaryDirectory() as temporary:
        files = Path(temporary)
        described.save(files / "MLmodel")
        (files / PLACE_FILE).write_text(json.dumps({"folder": folder}), encoding="utf-8")
        (files / CODE_FILE).write_text(loading_code(folder, dtype), encoding="utf-8")
        client.log_model_artifacts(model.model_id, str(files))
