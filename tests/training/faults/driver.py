"""Starts fits on request, as forks of one process that has imported everything.

Started by conftest.py. Importing PyTorch, Lightning and transformers takes ten seconds, so it happens once; signals,
exit codes and files are real. Reads one JSON request per line and answers each with a line:
{"start": {"folder", "arguments", "ranks", "faults"}} with process ids, {"wait": ids} with exit codes, negative for the
signal that ended a process. "faults" is a list of [rank, point, action] of faults.py. Several ranks find each other
as under torchrun.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import subprocess
import sys
from typing import Any

from tests.forking import before_forking
from tests.training.faults.faults import arm

from uniattn_pl.cli import main

# a process that waits for ever is ended by this signal's default, and its exit code tells
HANGING_S = 60
DISK_SIZE = "8m"
# set by who started this process in a mount namespace of its own
PRIVATE_MOUNTS = "PRIVATE_MOUNTS" in os.environ


def mounted_disk(where: str) -> str | None:
    """Mount a small disk that this process and its forks have, and nobody else; it goes with them. None: may not."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "tmpfs", where]
    if not PRIVATE_MOUNTS or subprocess.run(mount, capture_output=True, check=False).returncode:
        return None
    return where


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(job: dict[str, Any]) -> list[int]:
    """Fork every rank; returns the process ids."""
    port = free_port()
    return [_fork(job, rank, port) for rank in range(job["ranks"])]


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        signal.alarm(HANGING_S)
        os.chdir(job["folder"])
        _redirect(rank)
        faulthandler.enable()  # a crash of native code says where
        _join(rank, job["ranks"], port)
        for who, point, action in job["faults"]:
            if who == rank:
                arm(point, action)
        code = main(job["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _redirect(rank: int) -> None:
    for stream, name in enumerate(("/dev/null", f"stdout-{rank}.txt", f"stderr-{rank}.txt")):
        file = os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if stream else 0), 0o644)
        os.dup2(file, stream)
        os.close(file)


def _join(rank: int, world_size: int, port: int) -> None:
    if world_size == 1:
        return
    world = str(world_size)
    names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({**names, **rendezvous, "GROUP_RANK": "0"})


def wait(children: list[int]) -> list[int]:
    """The exit codes of these processes once all of them have ended."""
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    print(json.dumps(mounted_disk(sys.argv[1])), flush=True)
    before_forking()
    for line in sys.stdin:
        ((request, argument),) = json.loads(line).items()
        print(json.dumps({"start": start, "wait": wait}[request](argument)), flush=True)
    os._exit(0)  # taking down what was imported takes seconds
