"""A real PostgreSQL server for tests: a private cluster in a temporary folder, without a system service."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import psycopg

PASSWORD = "correct-horse"
DEBIANS = Path("/usr/lib/postgresql")  # VERSION/bin, which is not in the PATH


def binaries() -> Path | None:
    """The folder of PostgreSQL's server programs, the newest version's; None where there are none."""
    found = shutil.which("initdb")
    folders = sorted(DEBIANS.glob("*/bin"), key=lambda folder: float(folder.parent.name))
    return Path(found).parent if found else folders[-1] if folders else None


class PostgresServer:
    """A server on a free port of 127.0.0.1 that asks for a password."""

    def __init__(self) -> None:
        found = binaries()
        assert found is not None
        self._binaries = found
        self._folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own are closed to other users
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        if os.getuid() == 0:
            shutil.chown(self._folder, "postgres", "postgres")

    def url(self, database: str, password: str = PASSWORD, port: int | None = None) -> str:
        """A database of the server as a ledger."""
        return f"postgresql+psycopg://tester:{password}@127.0.0.1:{port or self.port}/{database}"

    def database(self, name: str) -> str:
        """Make an empty database; returns it as a ledger."""
        address = self.url("postgres").replace("+psycopg", "")
        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.url(name)

    def start(self) -> None:
        """Make the cluster and start it; returns once it answers."""
        secret = self._folder / "password"
        secret.write_text(PASSWORD, encoding="utf-8")
        shutil.chown(secret, self._folder.owner(), self._folder.group())
        make = ["initdb", "--no-sync", "--username=tester", f"--pwfile={secret}", "--auth=scram-sha-256"]
        self._run([*make, f"--pgdata={self._folder / 'data'}"])
        self._run(self._control("start"))

    def command(self, action: str) -> str:
        """A shell command that does `start`, `stop` or `restart`; connections are cut off."""
        return shlex.join(self._as_user(self._control(action)))

    def stop(self) -> None:
        """Stop it and remove all that it has left."""
        self._run(self._control("stop"))
        shutil.rmtree(self._folder)

    def _control(self, action: str) -> list[str]:
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        started = ["-o", options, "-l", str(self._folder / "log")] if action != "stop" else []
        return ["pg_ctl", action, "-w", "-m", "immediate", *started, "-D", str(self._folder / "data")]

    def _as_user(self, command: list[str]) -> list[str]:
        """PostgreSQL refuses to run as root."""
        words = [str(self._binaries / command[0]), *command[1:]]
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        return [*user, *words] if os.getuid() == 0 else words

    def _run(self, command: list[str]) -> None:
        # to a file: the server goes on, and would hold a pipe open
        with (self._folder / "output").open("a+") as output:
            done = subprocess.run(self._as_user(command), stdout=output, stderr=output, check=False, cwd="/")
            output.seek(0)
            assert done.returncode == 0, output.read()
