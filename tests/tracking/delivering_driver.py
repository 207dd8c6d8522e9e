"""Logs the same run again and again in forked processes, each of which kills itself while it is delivered.

Started by test_server_faults.py as its own process, with the server's address and a run folder. SIGKILL and
what it leaves behind are real. MLflow's databases recognise a point they have by its timestamp; here every
request carries new ones, so that whatever is sent twice is in the run twice.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlflow.entities import Metric
from mlflow.tracking import MlflowClient

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.tracking import delivery, mlflow_store
from uniattn_pl.tracking.data_inputs import DataInput
from uniattn_pl.tracking.delivery_state import DeliveryState
from uniattn_pl.tracking.logged_model import ModelRecord
from uniattn_pl.tracking.mlflow_run import MLflowRun

STEPS, KEYS = 60, ("stage1/loss", "stage1/lr")
MODEL = ModelRecord(
    name="killed",
    kind="uniattn",
    folder="/runs/killed/final",
    dtype="float32",
    params={f"key{n}": str(n) for n in range(150)},  # more than one request takes
    tags={"kind": "driven"},
    what="a model",
    step=STEPS,
    held_out=None,
    register_as="killed",
)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def on_call(number: int, owner: Any, name: str, *, after: bool = False) -> Callable[[], None]:
    """Arm the process to die in the given call of `owner.name`, before or after its work."""

    def arm() -> None:
        original, calls = getattr(owner, name), itertools.count(1)

        def replacement(*args: Any, **kwargs: Any) -> Any:
            mine = next(calls) == number
            if mine and not after:
                kill()
            result = original(*args, **kwargs)
            if mine:
                kill()
            return result

        setattr(owner, name, replacement)

    return arm


def send_new_timestamps() -> None:
    log_batch = MlflowClient.log_batch

    def stamped(client: MlflowClient, run_id: str, metrics: Any = (), **others: Any) -> Any:
        fresh = [Metric(m.key, m.value, time.time_ns() // 1000, m.step) for m in metrics]
        return log_batch(client, run_id, fresh, **others)

    MlflowClient.log_batch = stamped


def log(uri: str, folder: Path) -> None:
    """What a fit does that always starts again from its first step."""
    config = TrackingConfig(uri)
    run = MLflowRun.open(config, name="killed", fit_id="killed", run_id=None, tags={"kind": "driven"}, folder=folder)
    run.log_params({f"key{n}": n for n in range(5)})
    run.log_text("what it is", "note.txt")
    run.log_input(DataInput.of(["rows"], "0" * 64, 4, "training"))
    for step in range(1, STEPS + 1):
        run.log_metrics({key: float(step) for key in KEYS}, step)
    run.log_model(MODEL)
    if not run.end("FINISHED"):
        raise SystemExit(run.leftover())


def attempt(uri: str, folder: Path, arm: Callable[[], None] | None) -> None:
    """Fork, arm, log; the child must die of SIGKILL, or succeed when it is not armed."""
    child = os.fork()
    if child == 0:
        send_new_timestamps()
        if arm is not None:
            arm()
        log(uri, folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    if killed != (arm is not None) or (not killed and status != 0):
        raise SystemExit(f"the process ended with status {status}")


def kill_points() -> list[Callable[[], None]]:
    """At what must be survived, in the order it is delivered in; among the metrics at any place."""
    anywhere = random.Random(0)
    return [
        on_call(1, mlflow_store, "find_or_create_run", after=True),  # created and not recorded
        on_call(1, MlflowClient, "log_batch", after=True),  # the params
        on_call(1, MlflowClient, "log_artifact", after=True),
        on_call(1, MlflowClient, "log_inputs", after=True),
        on_call(1, MlflowClient, "log_batch", after=True),  # sent and not recorded
        on_call(2, MlflowClient, "log_batch", after=True),
        on_call(2, MlflowClient, "log_batch"),
        *(on_call(anywhere.randint(2, 3), DeliveryState, "write", after=anywhere.random() < 0.5) for _ in range(6)),
        on_call(1, MlflowClient, "create_logged_model", after=True),
        on_call(1, MlflowClient, "log_outputs", after=True),
        on_call(1, MlflowClient, "create_model_version", after=True),
        on_call(1, MlflowClient, "set_terminated", after=True),
    ]


if __name__ == "__main__":
    delivery.METRICS_PER_REQUEST = 5
    for point in kill_points():
        attempt(sys.argv[1], Path(sys.argv[2]), point)
        print("killed", flush=True)
    attempt(sys.argv[1], Path(sys.argv[2]), None)
