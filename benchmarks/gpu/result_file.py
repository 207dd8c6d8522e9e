"""The one JSON file of a check: what it ran on, how each part ended, and every row as soon as it is measured."""

from __future__ import annotations

import gc
import json
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from uniattn_pl.files import atomic_file
from uniattn_pl.tracking.environment import git_state

FORMAT = 1
PACKAGES_OF_A_CHECK = ("torch", "triton", "transformers", "lightning", "flash_attn", "flash_attn_3")
DONE, FAILED, TIMED_OUT, SKIPPED = "done", "failed", "out of time", "skipped"
LONGEST_MESSAGE = 300  # characters


class PartSkipped(Exception):
    """A part lacks something that it cannot do without; the message says what."""


@dataclass(frozen=True)
class ResultFile:
    """The file; one process at a time writes it, whole, so that a run that is cut short loses nothing."""

    path: Path

    def begin(self, *, tiny: bool) -> None:
        """Start anew, with the machine that it will be measured on."""
        facts = {"format": FORMAT, "tiny": tiny, **machine_facts(), "parts": {}, "rows": []}
        self._write(facts)

    def read(self) -> dict[str, Any]:
        """What is in it so far."""
        content: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        return content

    def note(self, part: str, row: dict[str, Any]) -> None:
        """Add a row of a part, and print it."""
        print(json.dumps(row), flush=True)
        content = self.read()
        content["rows"].append({"part": part, **row})
        self._write(content)

    def end_part(self, part: str, status: str, seconds: float, why: str = "") -> None:
        """Record how a part ended."""
        content = self.read()
        content["parts"][part] = {"status": status, "seconds": round(seconds, 1), **({"why": why} if why else {})}
        self._write(content)

    def _write(self, content: dict[str, Any]) -> None:
        with atomic_file(self.path) as file:
            file.write((json.dumps(content, indent=1) + "\n").encode())


@dataclass(frozen=True)
class CheckOptions:
    """How a check is run.

    Attributes:
        tiny: small shapes, for any machine.
        model: a folder of SmolLM2-135M in the Hugging Face format, where its package is not installed.
        data: a file of PMC rows; None: where the experiments look for it, else the embedded rows.
    """

    tiny: bool
    model: Path | None = None
    data: Path | None = None

    @property
    def device(self) -> str:
        return "cuda" if torch.cuda.is_available() and not self.tiny else "cpu"


@dataclass
class PartRows:
    """What a part writes: rows of the file, by its own name."""

    file: ResultFile
    part: str
    failures: int = 0

    def note(self, **row: Any) -> None:
        """Write one row."""
        self.file.note(self.part, row)

    def attempt(self, work: Callable[[], None], **case: Any) -> None:
        """Measure one case; that it fails, or needs more memory than there is, is a row, and the next goes on."""
        try:
            work()
        except torch.cuda.OutOfMemoryError as error:
            self.note(**case, does_not_fit=_message(error))
        except Exception as error:  # whatever it is, it is the finding
            self.failures += 1
            self.note(**case, failed=_message(error))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def machine_facts() -> dict[str, Any]:
    """Card, its memory, versions, date, and the commit of the code."""
    card = torch.cuda.is_available()
    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    git = git_state(Path(__file__).parent) or {"commit": None, "dirty": None}
    return {
        "card": torch.cuda.get_device_name(0) if card else None,
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if card else None,
        "versions": versions | {name: found for name in PACKAGES_OF_A_CHECK if (found := _installed(name)) is not None},
        "date": date.today().isoformat(),
        "commit": git["commit"],
        "changed_since": git["dirty"],
    }


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _message(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:LONGEST_MESSAGE]}"
