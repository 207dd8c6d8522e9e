"""`serve` in a process of its own, as a test meets it."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any


class ServerProcess:
    """A server that has said that it is ready.

    Attributes:
        lines: what it printed then.
    """

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], words: Sequence[str]) -> None:
        self.process, self._errors = process, errors
        assert process.stdout is not None
        self.lines = [process.stdout.readline().strip()]
        found = re.search(r":(\d+)/v1", self.lines[0])
        assert found is not None, self.lines[0] + self.errors()
        self.port = int(found[1])
        while " -c " not in self.lines[-1]:
            self.lines.append(process.stdout.readline().strip())
        if "0.0.0.0" in words:
            self.lines.append(process.stdout.readline().strip())

    def errors(self) -> str:
        """What it has written to stderr."""
        self._errors.seek(0)
        return self._errors.read()

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Sequence[str] = ()
    ) -> tuple[int, bytes]:
        """Status and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        named = dict(header.split(": ", 1) for header in headers)
        connection.request(method, path, body, headers=named)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def ask(self, **body: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer of a completion."""
        content = json.dumps(body).encode()
        status, answer = self.request("POST", "/v1/completions", content, ["content-type: application/json"])
        return status, json.loads(answer)

    def wait_for(self, **counts: int) -> None:
        """Look until the server says that so many texts are running or waiting."""
        while counts.items() - json.loads(self.request("GET", "/health")[1]).items():
            assert self.process.poll() is None, self.errors()


@contextmanager
def started(*words: str, environment: dict[str, str] | None = None) -> Iterator[ServerProcess]:
    """Within, a server that is ready."""
    command = [sys.executable, "-m", "uniattn_pl", "serve", *words]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env={**os.environ, **(environment or {})}
        )
        try:
            yield ServerProcess(process, errors, words)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
