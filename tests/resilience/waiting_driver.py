"""Starts fits that wait for other processes, in forks, and signals each as it says so: python waiting_driver.py JOBS.

JOBS is a JSON list of {"folder", "environment", "arguments", "signal"}. Prints one line of JSON per job: the line in
which the fit said what it waits for, and its exit code, negative for a signal that ended it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import uniattn_pl.training.fit  # noqa: F401  # once, for all forks
from uniattn_pl.cli import main


def start(job: dict[str, Any]) -> tuple[int, int]:
    """Fork a fit; returns its process id and what reads its stderr."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    os.dup2(writing, 2)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.stderr = os.fdopen(2, "w", buffering=1)
    os._exit(main(job["arguments"]))


def run(job: dict[str, Any]) -> dict[str, Any]:
    child, reading = start(job)
    with os.fdopen(reading) as lines:
        said = next((line for line in lines if line.startswith("waiting for ")), "")
        os.kill(child, job["signal"])
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return {"said": said, "code": code, "then": lines.read()}


if __name__ == "__main__":
    for described in json.loads(sys.argv[1]):
        print(json.dumps(run(described)), flush=True)
