"""A real MLflow server for tests, killed and started again at will on the same port and database."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path


class MLflowServer:
    """`mlflow server` on an sqlite database in `folder`, as a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and return once it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--workers", "1"]
        # nobody reads on once it has started: a log of every request would fill the pipe
        command += ["--artifacts-destination", str(self.folder / "artifacts"), "--uvicorn-opts", "--no-access-log"]
        self._process = subprocess.Popen(
            command,
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        printed = []
        for line in self._process.stdout:
            printed.append(line)
            if "Uvicorn running on" in line:
                return
        raise AssertionError("the MLflow server did not start:\n" + "".join(printed))

    def kill(self) -> None:
        """SIGKILL to the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.communicate()
            self._process = None
