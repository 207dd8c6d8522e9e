"""The journal of a run: all that it logs, written to the run folder before it is sent to any server."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uniattn_pl.files import atomic_file
from uniattn_pl.redaction import redact

FOLDER, FILE, ARTIFACTS = "tracking", "journal.jsonl", "artifacts"


class JournalEntry(NamedTuple):
    """One journaled operation, and the byte offset behind its line."""

    operation: dict[str, Any]
    end: int


class Journal:
    """An append-only file with one operation per line: metrics, params, tags, artifacts, inputs, a model, statuses.

    A line is complete or, after a kill, cut off on opening. What is there already is not journaled again: a
    metric's step that is not past the key's last one, a param, an input, an unchanged tag, artifact or model. So a
    fit that repeats the steps after its last checkpoint leaves neither gaps nor duplicates.

    Args:
        folder: the run folder; the journal is in its `tracking/`.
        fit_id: whose journal it is; one of another fit is moved aside.
        name: of the run, for a delivery that comes later.
    """

    def __init__(self, folder: Path, *, fit_id: str, name: str) -> None:
        self.folder = folder / FOLDER
        self.path = self.folder / FILE
        self.resumed = False
        self.count = 0
        self._last_step: dict[str, int] = {}
        self._params: set[str] = set()
        self._tags: dict[str, str] = {}
        self._artifacts: set[str] = set()
        self._inputs: set[tuple[str, str]] = set()
        self._model: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._move_foreign_aside(fit_id)
        self._read()
        self._file = self.path.open("ab", buffering=0)
        self._synced = True
        if not self.resumed:
            self._append([{"op": "run", "fit_id": fit_id, "name": name}])
            self.sync()

    def _move_foreign_aside(self, fit_id: str) -> None:
        """A run folder whose manifest was deleted has another fit's journal, whose steps are not ours."""
        owner = journal_owner(self.folder.parent)
        if owner is not None and owner["fit_id"] != fit_id:
            os.rename(self.folder, self.folder.with_name(f"{FOLDER}-{owner['fit_id']}"))
        self.folder.mkdir(parents=True, exist_ok=True)

    def _read(self) -> None:
        """Learn what is journaled; cut off what a kill or a power cut left behind the last whole line."""
        self.size = 0
        if not self.path.exists():
            return
        for operation, end in entries(self.path):
            self._learn(operation)
            self.size, self.count, self.resumed = end, self.count + 1, True
        os.truncate(self.path, self.size)

    def _learn(self, operation: dict[str, Any]) -> None:
        match operation["op"]:
            case "metric":
                self._last_step[operation["key"]] = operation["step"]
            case "param":
                self._params.add(operation["key"])
            case "tag":
                self._tags[operation["key"]] = operation["value"]
            case "artifact":
                self._artifacts.add(operation["path"])
            case "input":
                self._inputs.add((operation["name"], operation["digest"]))
            case "model":
                self._model = operation

    def _append(self, operations: list[dict[str, Any]]) -> None:
        if not operations:
            return
        data = b"".join(json.dumps(operation, separators=(",", ":")).encode() + b"\n" for operation in operations)
        with self._lock:
            try:
                written = 0
                while written < len(data):
                    written += self._file.write(data[written:])
            except OSError:
                os.truncate(self.path, self.size)  # half a line would swallow the next one
                raise
            self.size += len(data)
            self.count += len(operations)
            self._synced = False
        for operation in operations:
            self._learn(operation)

    def metrics(self, metrics: Mapping[str, float], step: int, **about: Any) -> None:
        """Journal the metrics whose last step is before `step`; `about`: further fields of their operations."""
        now = _now()
        new = [(key, float(value)) for key, value in metrics.items() if step > self._last_step.get(key, -1)]
        self._append([{"op": "metric", "key": k, "value": v, "timestamp": now, "step": step, **about} for k, v in new])

    def params(self, params: Mapping[str, str]) -> None:
        """Journal the params that are not: the first value stays, as it does in MLflow."""
        new = {key: value for key, value in params.items() if key not in self._params}
        self._append([{"op": "param", "key": key, "value": redact(value)} for key, value in new.items()])

    def tag(self, key: str, value: str) -> None:
        """Journal a tag that is new or has changed."""
        value = redact(value)
        if self._tags.get(key) != value:
            self._append([{"op": "tag", "key": key, "value": value}])

    def artifact(self, name: str, content: bytes) -> None:
        """Keep a small file as `artifacts/name`, replacing an earlier one, and journal it when it has changed."""
        path = self.folder / ARTIFACTS / name
        if name in self._artifacts and path.is_file() and path.read_bytes() == content:
            return
        with atomic_file(path) as file:
            file.write(content)
        self._append([{"op": "artifact", "path": name}])

    def input(self, data: Mapping[str, Any]) -> None:
        """Journal rows that the run has read, once; MLflow knows them by name and digest."""
        operation = {"op": "input", **redact(dict(data))}
        if (operation["name"], operation["digest"]) not in self._inputs:
            self._append([operation])

    def model(self, record: Mapping[str, Any]) -> None:
        """Journal what the run's model is, where it has changed."""
        operation = {"op": "model", **redact(dict(record))}
        if operation != self._model:
            self._append([operation])

    def follow_model(self) -> None:
        """Journal where the model is now, where its run folder was moved."""
        if self._model is not None:
            folder = self.folder.parent / Path(self._model["folder"]).name
            self.model({**self._model, "folder": str(folder.resolve())})

    def status(self, status: str) -> None:
        """Journal the run's status: RUNNING, FINISHED, FAILED or KILLED."""
        self._append([{"op": "status", "status": status, "timestamp": _now()}])

    def sync(self) -> None:
        """Make what is journaled survive a power cut; does nothing when nothing is new."""
        if not self._synced:
            self._synced = True
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()

    def history(self, key: str) -> list[tuple[int, float]]:
        """The (step, value) points of a metric, in order of steps."""
        points = (o for o, _ in entries(self.path) if o["op"] == "metric" and o["key"] == key)
        return [(operation["step"], operation["value"]) for operation in points]

    def last_points(self) -> list[dict[str, Any]]:
        """The last point of every metric, as it was journaled."""
        points = {o["key"]: o for o, _ in entries(self.path) if o["op"] == "metric"}
        return list(points.values())

    def next_step(self, prefix: str) -> int:
        """The step behind the last one of the metrics whose keys begin so."""
        steps = list(self._last_step.items())  # other threads log, too
        return 1 + max((step for key, step in steps if key.startswith(prefix)), default=-1)

    def tag_value(self, key: str) -> str | None:
        """A tag as it was journaled last."""
        return self._tags.get(key)

    def count_until(self, offset: int) -> int:
        """How many operations end at or before a byte offset."""
        return sum(end <= offset for _, end in entries(self.path))


def entries(path: Path, offset: int = 0) -> Iterator[JournalEntry]:
    """Yield a journal's operations behind a byte offset, up to the first line that is not whole."""
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            try:
                operation = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(operation, dict):
                return
            offset += len(line)
            yield JournalEntry(operation, offset)


def journal_owner(folder: Path) -> dict[str, Any] | None:
    """The fit id and the name that the journal of a run folder was begun with; None when there is no journal."""
    path = folder / FOLDER / FILE
    return next((entry.operation for entry in entries(path)), None) if path.exists() else None


def _now() -> int:
    return int(time.time() * 1000)
