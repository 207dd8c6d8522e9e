"""Runs fits of several ranks in forked processes, one after the other, as torchrun would: python ranks_driver.py JOBS.

JOBS is a JSON list of {"folder", "ranks", "arguments", "kill", "log"}; "kill" is null or [rank, name of a kill point],
"log" the beginning of the file each rank writes to. Prints one line of JSON per job: the exit code of every rank,
negative for the signal that ended it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from importlib.util import find_spec
from typing import Any

from tests.forking import before_forking
from tests.training.killing_driver import KILL_POINTS, main


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def start(job: dict[str, Any], rank: int, port: int) -> int:
    """Fork one rank; returns its process id."""
    child = os.fork()
    if child:
        return child
    sys.stdout.flush()
    log = os.open(f"{job['log']}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job["folder"])
    if job["ranks"] > 1:
        world = str(job["ranks"])
        names = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        os.environ.update({**names, **rendezvous, "GROUP_RANK": "0"})
    if job["kill"] and job["kill"][0] == rank:
        KILL_POINTS[job["kill"][1]]()
    os._exit(main(job["arguments"]))


def run(job: dict[str, Any]) -> list[int]:
    """Start all ranks and wait for them."""
    port = free_port()
    children = [start(job, rank, port) for rank in range(job["ranks"])]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    jobs = json.loads(sys.argv[1])
    if any("lora" in word or "8bit" in word for job in jobs for word in job["arguments"]) and find_spec("bitsandbytes"):
        import bitsandbytes  # noqa: F401  # peft imports it late, every fork would do so again
    before_forking()
    for described in jobs:
        print(json.dumps(run(described)), flush=True)
