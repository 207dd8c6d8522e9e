"""The environments of the peers: each with its own Python packages, pinned, in a folder that git ignores."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = "torch==2.13.0"  # first: its build decides which builds of everything else fit


@dataclass(frozen=True)
class Code:
    """Code of a peer that no registry has: fetched by whoever measures, from its own repository, at one commit."""

    url: str
    commit: str
    folders: tuple[str, ...]


@dataclass(frozen=True)
class Environment:
    """What a peer runs in.

    Attributes:
        requirements: files in `requirements/`, installed one after the other.
        alone: of these, those whose own pins are left out, since they name another transformers.
        code: what is fetched besides.
    """

    requirements: tuple[str, ...]
    alone: tuple[str, ...] = ()
    code: Code | None = None


ENVIRONMENTS = {
    "product": Environment(("product.txt", "product-press.txt"), alone=("product-press.txt",)),
    "kvpress": Environment(("kvpress.txt",)),
    "llm-drop": Environment(
        ("llm-drop.txt",),
        code=Code(
            "https://github.com/CASE-Lab-UMD/LLM-Drop",
            "28b5dd14c2474c7110b2b42f5862a6dbdbe71a2d",
            ("src/llmtuner/compression/prune/models",),
        ),
    ),
    "uniattn-official": Environment(
        ("uniattn-official.txt",),
        code=Code("https://github.com/Bostoncake/UniAttn", "79a24cc81f2dccd2e58945a932e30acd819b726d", ("model_file",)),
    ),
}


def python_of(place: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return place / name / "bin" / "python"


def code_of(place: Path, name: str) -> Path | None:
    """Where the fetched code of an environment lies, if it has any."""
    return place / f"{name}-code" if ENVIRONMENTS[name].code else None


def install(place: Path, name: str, repository: str | None) -> None:
    """Make an environment; one that is there is brought to its pins.

    Args:
        place: the folder of all environments.
        name: of `ENVIRONMENTS`.
        repository: where git finds the code instead of its address on the net, such as a bare copy.
    """
    environment, python = ENVIRONMENTS[name], str(python_of(place, name))
    if not Path(python).exists():
        subprocess.run([sys.executable, "-m", "venv", str(place / name)], check=True)
    pip = [python, "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, TORCH], check=True)
    for file in environment.requirements:
        alone = ["--no-deps"] if file in environment.alone else []
        subprocess.run([*pip, *alone, "-r", str(HERE / "requirements" / file)], check=True, cwd=ROOT)
    target = code_of(place, name)
    if environment.code and target is not None:
        fetch_code(environment.code, repository or environment.code.url, target)


def fetch_code(code: Code, repository: str, target: Path) -> None:
    """The folders of a commit, without the rest of the repository."""
    bare = target.with_suffix(".git")
    if not bare.exists():
        subprocess.run(["git", "clone", "--quiet", "--bare", repository, str(bare)], check=True)
    archive = ["git", f"--git-dir={bare}", "archive", code.commit, *code.folders]
    packed = subprocess.run(archive, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        tar.extractall(target, filter="data")
