"""Another engine's server as a child process: told when it is ready, sent our signals, its exit code passed on."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from types import FrameType

from uniattn_pl.serving.server.engines import EngineProcess

BETWEEN_LOOKS_S = 0.2
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def run_child(name: str, engine: EngineProcess, url: str, ready: Callable[[], None]) -> int:
    """Start the engine `name`, call `ready` when it answers at `url`, and return its exit code when it has ended."""
    environment = {**os.environ, **engine.environment}
    # Ctrl-C reaches it through us.
    child = subprocess.Popen(engine.words, env=environment, start_new_session=True, preexec_fn=_end_with_parent())

    def pass_on(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    former = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        waits_for_it = True
        while True:
            try:
                code = child.wait(BETWEEN_LOOKS_S if waits_for_it else None)
                if waits_for_it and code > 0:
                    print(f"error: {name} ended before it was ready, for the reason above.", file=sys.stderr)
                return code if code >= 0 else 128 - code
            except subprocess.TimeoutExpired:
                if _answers(url):
                    waits_for_it = False
                    ready()
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        if child.poll() is None:
            child.kill()
            child.wait()


def _end_with_parent() -> Callable[[], None] | None:
    """What has the kernel end a child whose parent is gone, also one killed with -9; None where it cannot."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl  # found before the fork, behind which a child should do little
    return lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=1) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
