"""A real SLURM cluster for tests: munged, slurmctld and slurmd of their own on loopback, in a temporary folder."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
DEBIANS = "/usr/sbin"  # of daemons, which is not in everybody's PATH
CORES = 8  # told, not there: nothing here waits for a core
CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# a job that is queued again waits for as long as what its steps were allowed with is good, by default two minutes
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
MpiDefault=none
JobRequeue=1
ReturnToService=2
KillWait=60
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} RealMemory=8000
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be no cluster here, in a line; None where there can."""
    absent = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if absent:
        return f"SLURM is not installed (on Debian: apt-get install slurm-wlm munge): {', '.join(absent)}"
    return None if os.getuid() == 0 else "only root can start SLURM's daemons"


def eventually(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Wait for a condition that other processes bring about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.1)


class SlurmCluster:
    """One machine, which is its only node; `environment` is what SLURM's commands need to find it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": _path()}
        host = socket.gethostname().partition(".")[0]
        controller, node = _free_ports()
        text = CONFIG.format(host=host, folder=self.folder, controller=controller, node=node, cores=CORES)
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")

    def start(self) -> None:
        """Start the daemons; returns once the node takes jobs."""
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(256))
        key.chmod(0o400)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self.run("munged", "--force", *(f"--{option}={self.folder}/munge.{name}" for option, name in files.items()))
        for daemon in ("slurmctld", "slurmd"):
            self.run(daemon)
        eventually(lambda: "idle" in self.run("sinfo", "-h", "-o", "%T"), 30, self.logs())

    def stop(self) -> None:
        """End all jobs and daemons and remove what they have left, also of a cluster that has not started."""
        if (self.folder / "slurmctld.pid").exists():
            self.run("scancel", "--signal=KILL", "--full", "--me")
            self.run("scancel", "--me")
            with suppress(AssertionError):
                eventually(lambda: not self.run("squeue", "-h"), 20, "jobs stay")
        for name in ("slurmctld", "slurmd", "munge"):
            with suppress(OSError, ValueError, AssertionError):
                process = int((self.folder / f"{name}.pid").read_text())
                os.kill(process, signal.SIGTERM)
                eventually(lambda process=process: not Path(f"/proc/{process}").exists(), 10, name)  # type: ignore[misc]
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What one of SLURM's commands prints."""
        with (self.folder / "printed").open("a+") as printed:  # a daemon that goes on would hold a pipe open
            begin = printed.tell()
            done = subprocess.run(
                command,
                cwd=cwd or self.folder,
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=60,
            )
            printed.seek(begin)
            text = printed.read()
        assert done.returncode == 0, f"{' '.join(command)}: {text}"
        return text

    def submit(self, folder: Path, name: str, script: str) -> str:
        """Submit a batch script of two tasks, run in `folder`; its output is `NAME.out`. Returns the job's number."""
        (folder / f"{name}.sh").write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
        options = ["--parsable", "--nodes=1", "--ntasks-per-node=2", "--requeue", "--open-mode=append"]
        return self.run("sbatch", *options, f"--output={name}.out", f"{name}.sh", cwd=folder).strip()

    def facts(self, job: str) -> dict[str, str]:
        """What SLURM says of a job: JobState, Restarts, ExitCode and others."""
        return dict(word.partition("=")[::2] for word in self.run("scontrol", "show", "job", job).split())

    def processes(self, job: str) -> list[int]:
        """All processes of a job's steps."""
        rows = [line.split() for line in self.run("scontrol", "listpids", job).splitlines()[1:]]
        return [int(row[0]) for row in rows if int(row[0]) > 1]

    def logs(self) -> str:
        """The daemons' last words, for who wonders why nothing starts."""
        return "\n".join(file.read_text(errors="replace")[-2000:] for file in self.folder.glob("*.log"))


def _free_ports() -> list[int]:
    probes = [socket.socket() for _ in range(2)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports: list[int] = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", os.defpath), DEBIANS))
