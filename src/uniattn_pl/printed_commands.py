"""Every command line that the program prints, built in one place: quoted for a shell, for this interpreter, complete.

Tests collect what these functions return and run it as it stands.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from uniattn_pl.redaction import redact


def python() -> str:
    """How to call this interpreter from here: `python` where the environment is active, else its path."""
    if shutil.which("python") == sys.executable:
        return "python"
    executable, current = Path(sys.executable), Path.cwd()
    return shlex.quote(str(executable.relative_to(current) if executable.is_relative_to(current) else executable))


def uniattn(command: str, *words: str) -> str:
    """One of this program's commands."""
    return _line(f"{python()} -m uniattn_pl", command, *words)


def mlflow_on(store: str, *words: str) -> str:
    """A command of MLflow's on a store, which it takes from its environment; credentials are left out."""
    return _line(f"MLFLOW_TRACKING_URI={shlex.quote(redact(store))} {python()} -m mlflow", *words)


def mlflow_ui(store: str, run_id: str | None = None) -> str:
    """What shows the runs of a store: a command for a database; of a server its page, or that of a run."""
    if store.startswith(("http:", "https:")):
        return mlflow_page(store) + ("" if run_id is None else f"/#/runs/{run_id}")
    return _line(f"{python()} -m mlflow ui --host 127.0.0.1", "--backend-store-uri", redact(store))


def mlflow_page(store: str) -> str:
    """The address of a server's pages, without credentials."""
    parts = urlsplit(redact(store))  # by its rules: a password may have a slash
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"


def hub_model(source: str, revision: str | None) -> str:
    """The command that fetches a model from the hub."""
    return _line("hf download", source, *([] if revision is None else ["--revision", revision]))


def hub_data(name: str, split: str) -> str:
    """The command that fetches a data set from the hub."""
    return _line(python(), "-c", f'import datasets; datasets.load_dataset("{name}", split="{split}")')


def install(*requirements: str) -> str:
    """The command that installs packages beside this one."""
    return _line(f"{python()} -m pip install", *requirements)


def _line(program: str, *words: str) -> str:
    return " ".join((program, *map(shlex.quote, words)))


def config_words(files: Iterable[Path], overrides: Iterable[str]) -> list[str]:
    """The words of a command line that name an experiment."""
    return [*(word for file in files for word in ("--config", str(file))), *overrides]


def curl_post(url: str, body: Mapping[str, object], *, key_variable: str | None) -> str:
    """A request of JSON; `key_variable` holds the server's key."""
    key = "" if key_variable is None else f' -H "Authorization: Bearer ${key_variable}"'
    return _line("curl -s", url, "-H", "Content-Type: application/json") + f"{key} -d {shlex.quote(json.dumps(body))}"


def openai_completion(url: str, request: Mapping[str, object], *, key_variable: str | None) -> str:
    """The same with the package openai."""
    key = '"none"' if key_variable is None else f'os.environ["{key_variable}"]'
    words = ", ".join(f"{name}={json.dumps(value)}" for name, value in request.items())
    client = f"OpenAI(base_url={json.dumps(url)}, api_key={key})"
    imports = "from openai import OpenAI" if key_variable is None else "import os; from openai import OpenAI"
    return _line(python(), "-c", f"{imports}; print({client}.completions.create({words}).choices[0].text)")
