"""What the source may not contain: unpickling, evaluation, shells, and loaders left to unsafe defaults."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from uniattn_pl.config import yaml_scalars

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {
    "eval": "evaluates text",
    "exec": "evaluates text",
    "compile": "evaluates text",
    "__import__": "imports by name",
    "os.system": "runs a shell",
    "os.popen": "runs a shell",
    "yaml.unsafe_load": "constructs any object",
    "yaml.full_load": "constructs objects",
    "pd.read_pickle": "unpickles",
    "pandas.read_pickle": "unpickles",
}
ALLOWED = {
    # its unpickler knows a list of classes and refuses all others (test_checkpoints.py)
    "shard_reading.py": ["line 5: import pickle"],
    # what this process's own workers send it, through a pipe
    "encoded_chunks.py": ["line 5: import pickle"],
}
SAFE_LOADERS = {"Loader", "yaml.SafeLoader", "yaml.CSafeLoader"}


def findings(source: str) -> list[str]:
    """What is forbidden in a module, by line."""
    tree = ast.parse(source)
    return [f"line {node.lineno}: {what}" for node in ast.walk(tree) for what in _problems(node)]  # type: ignore[attr-defined]


def _problems(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (f"import {alias.name}" for alias in node.names if alias.name.split(".")[0] in PICKLES)
    elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PICKLES:
        yield f"import from {node.module}"
    elif isinstance(node, ast.Call):
        yield from _call_problems(ast.unparse(node.func), node)


def _call_problems(name: str, call: ast.Call) -> Iterator[str]:
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in CALLS:
        yield f"{name} {CALLS[name]}"
    if name == "torch.load" and given.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if ("ckpt_path" in given or name.endswith("load_from_checkpoint")) and given.get("weights_only") != "True":
        yield f"{name} of a checkpoint without weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        yield f"{name} with allow_pickle"
    if name in ("yaml.load", "yaml.load_all", "yaml.compose") and given.get("Loader") not in SAFE_LOADERS:
        yield f"{name} without a safe loader"
    if name.startswith("subprocess.") and "shell" in given:
        yield f"{name} with a shell"
    if given.get("trust_remote_code") == "True":
        yield f"{name} trusts code by itself"
    if re.fullmatch(r"Auto\w+\.from_pretrained", name) and "trust_remote_code" not in given:
        yield f"{name} asks on the terminal whether to trust code"
    is_model = name == "AutoModelForCausalLM.from_pretrained" and "gguf_file" not in given
    if is_model and given.get("use_safetensors") != "True":
        yield f"{name} takes pickled weights"


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT / "src")) for path in SOURCES])
def test_a_module_has_nothing_forbidden(path: Path) -> None:
    found = findings(path.read_text(encoding="utf-8"))
    assert found == ALLOWED.get(path.name, [])


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "trainer.fit(module, ckpt_path=path)",
        "Module.load_from_checkpoint(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.load(text)",
        "eval(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "AutoTokenizer.from_pretrained(folder)",
        "AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)",
        "load_model(source, trust_remote_code=True)",
    ],
)
def test_the_search_finds(line: str) -> None:
    assert findings(line)


def test_the_loader_of_configs_is_a_safe_one() -> None:
    assert issubclass(yaml_scalars.Loader, yaml.SafeLoader)
    assert not issubclass(yaml_scalars.Loader, yaml.FullLoader | yaml.UnsafeLoader)


TEXTS = [ROOT / "Makefile", ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *SOURCES]


def test_every_mlflow_server_anybody_is_told_to_start_listens_on_loopback_only() -> None:
    lines = [line for path in TEXTS for line in path.read_text(encoding="utf-8").splitlines()]
    starts = [line for line in lines if re.search(r"mlflow (ui|server) +-", line)]
    assert len(starts) >= 2  # the Makefile's, and the one that is printed
    assert all("--host 127.0.0.1" in line for line in starts)
