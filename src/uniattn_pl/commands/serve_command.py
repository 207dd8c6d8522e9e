"""`serve`: a model behind an OpenAI-compatible API on this machine."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from uniattn_pl.commands.arguments import Parser, load, whole_number
from uniattn_pl.commands.model_source import add_source_arguments, find_model_folder
from uniattn_pl.config.paths import path_argument
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.run_folder import FINAL
from uniattn_pl.serving.server.engines import ENGINES, GGUF, OWN, PROCESSES, EngineProcess
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
  uniattn-pl serve --from runs/quickstart
  uniattn-pl serve --from runs/quickstart --port 0 --max-model-len 2048 --dry-run"""


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
    engine, listening, source = None, None, None
    try:
        source = _source(arguments)
    except UserError as error:
        problems += error.problems
    if arguments.port in PORTS:
        try:
            listening = bound_socket(arguments.host, arguments.port)
        except UserError as error:
            problems += error.problems
    port = arguments.port if listening is None else listening.getsockname()[1]
    if source is not None and not problems:
        request = _request(arguments, source, port)
        try:
            engine = _checked(arguments.engine, request)
        except UserError as error:
            problems += error.problems
    if problems:
        if listening is not None:
            listening.close()
        raise UserError(*problems)
    assert listening is not None
    if arguments.dry_run:
        listening.close()
        print(f"dry run: would serve {request.source} as '{request.name}' at {request.url}/v1 with {arguments.engine}.")
        return 0
    if engine is not None:
        from uniattn_pl.serving.server.child_server import run_child

        listening.close()
        lines = ready_lines(request, chat=False)
        return run_child(arguments.engine, engine, request.url, lambda: print("\n".join(lines), flush=True))
    from transformers.utils.logging import disable_progress_bar

    from uniattn_pl.serving.server.run_server import run_server

    disable_progress_bar()  # of single-file transfers, which take a moment
    with listening:
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
    if arguments.engine_python is not None and arguments.engine != "vllm":
        problems.append("--engine-python is of --engine vllm; leave it out.")
    return problems


def _source(arguments: argparse.Namespace) -> Path:
    """The model folder, or the .gguf file, to serve."""
    file: Path | None = arguments.source
    if file is None or file.suffix != GGUF:
        return find_model_folder(arguments)
    if not file.is_file():
        raise UserError(f"there is no file '{file}'.")
    if arguments.engine == OWN:
        raise UserError(f"'{file}' is a .gguf file, which --engine llama.cpp serves; {OWN} takes a folder.")
    return file


def _request(arguments: argparse.Namespace, source: Path, port: int) -> ServeRequest:
    place = source.absolute()
    own_name = place.parent.name if place.name == FINAL else place.stem if place.suffix == GGUF else place.name
    return ServeRequest(
        source,
        arguments.model_name or own_name,
        arguments.host,
        port,
        tokens=arguments.max_model_len,
        parallel=arguments.parallel,
        waiting=arguments.queue,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        python=arguments.engine_python,
    )


def _checked(engine: str, request: ServeRequest) -> EngineProcess | None:
    """The process of another engine; None: it is our own. What cannot be served is refused."""
    if engine != OWN:
        return PROCESSES[engine](request)
    from uniattn_pl.serving.server.startup_checks import check_served

    check_served(request)
    return None
