"""`serve`: a model behind an OpenAI-compatible API on this machine."""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, load, whole_number
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.run_folder import run_name
from uniattn_pl.serving.server.engines import ENGINES, GGUF, LLAMA_CPP, OWN, PROCESSES, VLLM
from uniattn_pl.serving.server.serve_request import (
    KEY_VARIABLE,
    PORTS,
    ServeRequest,
    bound_socket,
    ready_lines,
)

DESCRIPTION = f"""\
Serves the model of a run, or any model folder, with OpenAI's API: completions (also of token ids, with
log-probabilities), chat completions, streaming. It listens on 127.0.0.1, unless --host says otherwise; a key that
clients must send is taken from the environment, {KEY_VARIABLE}."""
EXAMPLE = """\
  uniattn-pl serve --from runs/quickstart/UniAttn
  uniattn-pl serve --from runs/quickstart/UniAttn --port 0 --max-model-len 2048 --dry-run"""


def add_arguments(parser: Parser) -> None:
    """Add the options of `serve`."""
    add_source_arguments(parser)
    engines = "; ".join(f"{name}: {summary}" for name, summary in ENGINES.items())
    parser.add_argument("--engine", default=OWN, metavar="NAME", help=f"default: {OWN}. {engines}")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="default: 127.0.0.1, this machine alone")
    parser.add_argument("--port", type=whole_number, default=8000, metavar="N", help="default: 8000; 0: a free one")
    parser.add_argument("--model-name", metavar="NAME", help="what clients call the model; default: the run's name")
    parser.add_argument(
        "--max-model-len",
        type=whole_number,
        metavar="N",
        help="tokens of a text at most, prompt and answer; default: the model's positions",
    )
    parser.add_argument(
        "--parallel", type=whole_number, metavar="N", help="texts that are made at the same time; default: 8"
    )
    parser.add_argument(
        "--queue", type=whole_number, metavar="N", help=f"texts that wait, more are refused; {OWN} only; default: 128"
    )
    parser.add_argument(
        "--engine-python",
        type=path_argument,
        metavar="PYTHON",
        help="interpreter of the environment that has vLLM; default: $UNIATTN_PL_SERVING_PYTHON, or "
        ".venv-serving/bin/python",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything, then serve until a signal comes."""
    if arguments.print_config:
        print(load(arguments).to_yaml(), end="")
        return 0
    problems = _option_problems(arguments)
    listening, source = None, None
    try:
        source = _source(arguments)
    except UserError as error:
        problems += error.problems
    if arguments.port in PORTS:
        try:
            listening = bound_socket(arguments.host, arguments.port)
        except UserError as error:
            problems += error.problems
    if source is not None and listening is not None and not problems:
        request = _request(arguments, source, listening.getsockname()[1])
        try:
            _check_engine(arguments.engine, request)
        except UserError as error:
            problems += error.problems
    if problems or listening is None:
        if listening is not None:
            listening.close()
        raise UserError(*problems)
    with listening:
        if arguments.dry_run:
            place = f"{request.url}/v1 with {arguments.engine}"
            print(f"dry run: would serve {request.source} as '{request.name}' at {place}.")
            return 0
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of single-file transfers, which take a moment
        if arguments.engine != OWN:
            return _run_engine(arguments.engine, request, listening)
        from uniattn_pl.serving.server.run_server import run_server

        return run_server(request, listening)


def _option_problems(arguments: argparse.Namespace) -> list[str]:
    problems = []
    if arguments.engine not in ENGINES:
        near = did_you_mean(arguments.engine, ENGINES)
        problems.append(f"there is no engine '{arguments.engine}'.{near} Engines: {', '.join(ENGINES)}.")
    if arguments.port not in PORTS:
        problems.append(f"--port is a number from 0 to {PORTS[-1]}; got {arguments.port}.")
    for option, least in (("max_model_len", 2), ("parallel", 1), ("queue", 0)):
        value = getattr(arguments, option)
        if value is not None and value < least:
            problems.append(f"--{option.replace('_', '-')} must be at least {least}, got {value}.")
    if arguments.queue is not None and arguments.engine in PROCESSES:
        problems.append(f"--queue is of --engine {OWN}; {arguments.engine} has a queue of its own.")
    if arguments.engine_python is not None and arguments.engine != VLLM:
        problems.append(f"--engine-python is of --engine {VLLM}; leave it out.")
    return problems


def _source(arguments: argparse.Namespace) -> Path:
    """The model folder, or the .gguf file, to serve."""
    file: Path | None = arguments.source
    if file is None or file.suffix != GGUF:
        return find_model_folder(arguments)
    if not file.is_file():
        raise UserError(f"there is no file '{file}'.")
    if arguments.engine == OWN:
        raise UserError(f"'{file}' is a .gguf file, which --engine {LLAMA_CPP} serves; {OWN} takes a folder.")
    return file


def _request(arguments: argparse.Namespace, source: Path, port: int) -> ServeRequest:
    return ServeRequest(
        source,
        arguments.model_name or run_name(source),
        arguments.host,
        port,
        tokens=arguments.max_model_len,
        parallel=arguments.parallel,
        waiting=arguments.queue,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        python=arguments.engine_python,
    )


def _check_engine(engine: str, request: ServeRequest) -> None:
    """Refuse what an engine cannot serve, and an engine that is not here."""
    if engine == OWN:
        from uniattn_pl.serving.server.startup_checks import check_served

        check_served(request)
        return
    PROCESSES[engine](request)
    if engine == LLAMA_CPP and request.source.suffix != GGUF:
        from uniattn_pl.exporting.gguf.export_gguf import check_gguf_folder

        check_gguf_folder(request.source)


def _run_engine(engine: str, request: ServeRequest, listening: socket.socket) -> int:
    """Serve with another engine; for llama.cpp a run is written as a .gguf file that lives as long as the server."""
    from uniattn_pl.serving.server.child_server import run_child

    lines = ready_lines(request, chat=False)
    with tempfile.TemporaryDirectory(prefix="uniattn_pl-") as place:
        if engine == LLAMA_CPP and request.source.suffix != GGUF:
            from uniattn_pl.exporting.gguf.export_gguf import export_gguf

            file = Path(place) / "model.gguf"
            export_gguf(request.source, file)
            request = replace(request, source=file)
        listening.close()
        return run_child(engine, PROCESSES[engine](request), request.url, lambda: print("\n".join(lines), flush=True))
