"""The environment of a run: package versions, platform and the state of the working tree."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "uniattn_pl",
    "torch",
    "lightning",
    "transformers",
    "datasets",
    "tokenizers",
    "safetensors",
    "mlflow",
    "numpy",
)


def environment() -> dict[str, Any]:
    """Return versions, platform and git state; nothing of the process environment or of remote URLs."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": platform.machine(),
        "packages": {name: installed for name in PACKAGES if (installed := _version(name)) is not None},
        "devices": _devices(),
        "git": git_state(Path.cwd()) or git_state(Path(__file__).parent),
    }


def describe_machine() -> str:
    """The devices and what computes on them, in one line to stand beside measured figures."""
    model = next((line.split(":", 1)[1].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    return ", ".join([*_devices(), model or platform.machine(), f"torch {_version('torch')}"])


def _cpu_lines() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def git_state(folder: Path) -> dict[str, Any] | None:
    """Return commit, branch, whether tracked files changed, and the change's SHA-256; None outside a repository."""
    if _git(folder, "rev-parse", "--git-dir") is None:
        return None
    difference = _git(folder, "diff", "HEAD", "--no-ext-diff", "--binary") or ""
    return {
        "commit": _git(folder, "rev-parse", "HEAD"),
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(difference),
        "diff_sha256": hashlib.sha256(difference.encode()).hexdigest() if difference else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    import torch

    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cpu ({torch.get_num_threads()} threads)"]
