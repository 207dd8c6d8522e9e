"""Requests to one MLflow run that leave out what the run already has, so that nothing is recorded twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.redaction import redact
from uniattn_pl.tracking import mlflow_store
from uniattn_pl.tracking.data_inputs import send_input
from uniattn_pl.tracking.logged_model import metric_of, model_of, send_model

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REASON_LENGTH = 200
# what a store answers for good that has no data sets or logged models, as servers of MLflow 2
LACKING = {"ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED", "FEATURE_DISABLED"}


class RunRequests:
    """Sends journaled operations to one MLflow run.

    Args:
        client: of the store.
        run_id: the run.
        existing: whether the run was there before, and so may have some of the operations already.
        artifacts: folder of the journaled artifacts.
        require_active: raises when the run is deleted: it refuses everything then, and can be restored.
        tell: called with each line for people.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        *,
        existing: bool,
        artifacts: Path,
        require_active: Callable[[], object],
        tell: Callable[[str], None],
    ) -> None:
        self.client, self.run_id, self.artifacts = client, run_id, artifacts
        self._existing, self._require_active, self._tell = existing, require_active, tell
        self._stored_steps: dict[str, set[int]] = {}
        self._model_id: str | None = None
        self._told: set[str] = set()

    def send(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Send operations of one kind; returns those among them that could not be stored.

        An operation that the store refuses for good is told and left out, its neighbours are sent.
        """
        try:
            return self._request(operations)
        except Exception as error:
            self._forget_stored(operations)
            if not mlflow_store.is_invalid(error):
                raise
            self._require_active()
            if len(operations) > 1:
                return [held for operation in operations for held in self.send([operation])]
            self._tell_refused(operations[0], error)
            return []

    def _tell_refused(self, operation: dict[str, Any], error: Exception) -> None:
        line = json.dumps(operation)
        shown = line if len(line) <= REASON_LENGTH else line[:REASON_LENGTH] + "..."
        self._tell(f"MLflow refuses {shown} ({short_reason(error)}); it stays in the journal only.")

    def _request(self, operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
        from mlflow.entities import Param

        first = operations[0]
        match first["op"]:
            case "metric":
                new = [o for o in operations if o["step"] not in self._steps_of(o["key"])]
                of_model = self._model() if any(o.get("of_model") for o in new) else None
                metrics = [metric_of(o, of_model if o.get("of_model") else None) for o in new]
                if metrics:
                    self.client.log_batch(self.run_id, metrics)
            case "param":
                stored = self.client.get_run(self.run_id).data.params if self._existing else {}
                params = [Param(o["key"], o["value"]) for o in operations if o["key"] not in stored]
                if params:
                    self.client.log_batch(self.run_id, params=params)
            case "tag":
                self.client.set_tag(self.run_id, first["key"], first["value"])
            case "artifact" | "input" | "model":
                return [] if self.store(first) else [first]
            case "status" if first["status"] == "RUNNING":
                self.client.update_run(self.run_id, status="RUNNING")
            case "status":
                self.client.set_terminated(self.run_id, first["status"], end_time=first["timestamp"])
        return []

    def _steps_of(self, key: str) -> set[int]:
        """The steps of a metric that the store had when delivery began, or after a request of unknown outcome."""
        if key not in self._stored_steps:
            history = self.client.get_metric_history(self.run_id, key) if self._existing else []
            self._stored_steps[key] = {point.step for point in history}
        return self._stored_steps[key]

    def _forget_stored(self, operations: list[dict[str, Any]]) -> None:
        """Let the store be asked again which of these operations it has: the outcome of a request is unknown."""
        self._existing = True
        for operation in operations:
            self._stored_steps.pop(operation.get("key", ""), None)

    def _model(self) -> str | None:
        """The run's logged model, None where there is none: of a former version, or in a store without them."""
        if self._model_id is None:
            try:
                model = model_of(self.client, self.client.get_run(self.run_id))
            except Exception as error:
                if not _is_lacking(error):
                    raise
                return None
            self._model_id = None if model is None else model.model_id
        return self._model_id

    def store(self, operation: dict[str, Any]) -> bool:
        """Store an artifact, an input or a model; False when only these cannot be, which must not hold up metrics.

        They may be kept elsewhere than metrics. Raises what the store raises when it does not answer either.
        """
        kind = operation["op"]
        try:
            self._store_or_ask_again(operation)
        except Exception as error:
            self._require_active()
            if kind != "artifact" and (_is_lacking(error) or mlflow_store.is_invalid(error)):
                self._tell_refused(operation, error)
                return True
            if kind not in self._told:
                self._told.add(kind)
                self._tell(self._not_stored(operation, error))
            return False
        return True

    def _store_or_ask_again(self, operation: dict[str, Any]) -> None:
        """Store it; that there is no such thing here may have been said by a proxy before a server that was away."""
        try:
            self._store(operation)
        except Exception as error:
            if not _is_lacking(error):
                raise
            self._require_active()
            self._store(operation)

    def _store(self, operation: dict[str, Any]) -> None:
        match operation["op"]:
            case "artifact":
                parent = str(Path(operation["path"]).parent)
                file = self.artifacts / operation["path"]
                self.client.log_artifact(self.run_id, str(file), None if parent == "." else parent)
            case "input":
                send_input(self.client, self.run_id, operation)
            case "model":
                send_model(self.client, self.run_id, operation)

    def _not_stored(self, operation: dict[str, Any], error: Exception) -> str:
        if operation["op"] == "artifact":
            name = operation["path"]
            kept = f"it is kept in {self.artifacts / name} and tried again."
            return f"MLflow cannot store {name} ({short_reason(error)}); {kept}"
        what = "data set" if operation["op"] == "input" else "model"
        return f"MLflow cannot store the {what} {operation['name']} ({short_reason(error)}); it is tried again."


def _is_lacking(error: Exception) -> bool:
    return getattr(error, "error_code", None) in LACKING


def short_reason(error: Exception) -> str:
    """Return the first cause of an exception, in one short line without credentials."""
    origin: BaseException = error
    while (cause := origin.__cause__ or origin.__context__) is not None:
        origin = cause
    line = " ".join(str(redact(str(origin))).split()) or type(origin).__name__
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
