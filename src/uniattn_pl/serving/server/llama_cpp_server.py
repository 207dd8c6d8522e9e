"""llama.cpp's own server, from the package xllamacpp, as a process: the options of `llama-server` that `serve` uses."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Serve a .gguf file until a signal comes."""
    import xllamacpp

    parser = argparse.ArgumentParser()
    for name in ("model", "alias"):
        parser.add_argument(name)
    parser.add_argument("--host", default="127.0.0.1")
    for name in ("--port", "--ctx-size", "--parallel"):
        parser.add_argument(name, type=int)
    given = parser.parse_args(argv)
    stops = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stops)  # also of the threads that are started now
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.model_alias = given.model, {given.alias}
    parameters.hostnames, parameters.port = [given.host], given.port
    parameters.n_ctx = given.ctx_size or 0
    if given.parallel:
        parameters.n_parallel = given.parallel
    if key := os.environ.get("LLAMA_API_KEY"):
        parameters.api_keys = [key]
    server = xllamacpp.Server(parameters)
    number = signal.sigwait(stops)
    del server
    return 128 + number


if __name__ == "__main__":
    raise SystemExit(main())
