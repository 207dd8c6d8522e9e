"""Requests to one MLflow run that leave out what the run already has, so that nothing is recorded twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uniattn_pl.redaction import redact
from uniattn_pl.tracking import mlflow_store

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

REASON_LENGTH = 200


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
        self._artifacts_told = False

    def send(self, operations: list[dict[str, Any]]) -> list[str]:
        """Send operations of one kind; returns the artifacts among them that could not be stored.

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
                return [name for operation in operations for name in self.send([operation])]
            self._tell(
                f"MLflow refuses {json.dumps(operations[0])} ({short_reason(error)}); it stays in the journal only."
            )
            return []

    def _request(self, operations: list[dict[str, Any]]) -> list[str]:
        from mlflow.entities import Metric, Param

        first = operations[0]
        match first["op"]:
            case "metric":
                new = [o for o in operations if o["step"] not in self._steps_of(o["key"])]
                metrics = [Metric(o["key"], o["value"], o["timestamp"], o["step"]) for o in new]
                if metrics:
                    self.client.log_batch(self.run_id, metrics)
            case "param":
                stored = self.client.get_run(self.run_id).data.params if self._existing else {}
                params = [Param(o["key"], o["value"]) for o in operations if o["key"] not in stored]
                if params:
                    self.client.log_batch(self.run_id, params=params)
            case "tag":
                self.client.set_tag(self.run_id, first["key"], first["value"])
            case "artifact":
                if not self.upload(first["path"]):
                    return [first["path"]]
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

    def upload(self, name: str) -> bool:
        """Store an artifact; False when only artifacts cannot be, which must not hold up metrics.

        Artifacts may be kept elsewhere than metrics. Raises what the store raises when it does not answer either.
        """
        parent = str(Path(name).parent)
        file = self.artifacts / name
        try:
            self.client.log_artifact(self.run_id, str(file), None if parent == "." else parent)
        except Exception as error:
            self.client.get_run(self.run_id)
            if not self._artifacts_told:
                self._artifacts_told = True
                self._tell(f"MLflow cannot store {name} ({short_reason(error)}); it is kept in {file} and tried again.")
            return False
        return True


def short_reason(error: Exception) -> str:
    """Return the first cause of an exception, in one short line without credentials."""
    origin: BaseException = error
    while (cause := origin.__cause__ or origin.__context__) is not None:
        origin = cause
    line = " ".join(str(redact(str(origin))).split()) or type(origin).__name__
    return line if len(line) <= REASON_LENGTH else line[: REASON_LENGTH - 3] + "..."
