"""Results of an evaluation: figures with their 95 % intervals, and the files that let a killed one go on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uniattn_pl.files import atomic_file

Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """One measured value and its 95 % interval, None where there is none."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def proportion(cls, right: float, count: int) -> Estimate:
        """A proportion of `count` rows with Wilson's interval, which also holds near 0 and 1 and for few rows."""
        scale = 1 + Z**2 / count
        middle = (right + Z**2 / (2 * count)) / scale
        half = Z * math.sqrt(right * (1 - right) / count + Z**2 / (4 * count**2)) / scale
        return cls(right, max(0.0, middle - half), min(1.0, middle + half))

    @classmethod
    def with_error(cls, value: float, standard_error: float | None) -> Estimate:
        """A value with the normal interval of its standard error (None or NaN: without)."""
        if standard_error is None or math.isnan(standard_error):
            return cls(value)
        return cls(value, value - Z * standard_error, value + Z * standard_error)

    @classmethod
    def ratio(cls, rows: Sequence[tuple[float, int]]) -> Estimate:
        """A mean per token over rows of (sum, tokens): a ratio of two sums, with its linearised error."""
        count, tokens = len(rows), sum(length for _, length in rows)
        mean = sum(total for total, _ in rows) / tokens
        if count < 2:
            return cls(mean)
        squares = sum((total - mean * length) ** 2 for total, length in rows)
        return cls.with_error(mean, math.sqrt(squares * count / (count - 1)) / tokens)


@dataclass(frozen=True)
class Result:
    """One task or probe, scored.

    Attributes:
        name: of the task or probe, as in the metric `eval/NAME/...`.
        rows: rows, texts or windows scored.
        figures: metric -> value with interval.
        details: per row, what a paired comparison of two models needs.
    """

    name: str
    rows: int
    figures: dict[str, Estimate]
    details: list[dict[str, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """The inverse of `to_dict`."""
        return cls(**{**data, "figures": {name: Estimate(**figure) for name, figure in data["figures"].items()}})


class ResultFiles:
    """Finished parts of evaluations in a folder, each found again only by the same settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, settings: Mapping[str, Any]) -> list[Result] | None:
        """What was kept for these settings, or None."""
        path = self._path(name, settings)
        try:
            return [Result.from_dict(result) for result in json.loads(path.read_text(encoding="utf-8"))["results"]]
        except (OSError, ValueError, KeyError, TypeError):  # absent, or edited by hand: measure it again
            return None

    def keep(self, name: str, settings: Mapping[str, Any], results: list[Result]) -> None:
        """Write a finished part, whole or not at all."""
        data = {"settings": settings, "results": [result.to_dict() for result in results]}
        with atomic_file(self._path(name, settings)) as file:
            file.write(json.dumps(data, indent=1, default=str).encode())

    def _path(self, name: str, settings: Mapping[str, Any]) -> Path:
        safe = re.sub(r"[^\w.-]", "_", name)
        return self.folder / f"{safe}-{fingerprint(settings)[:16]}.json"


def fingerprint(data: Any) -> str:
    """A hash of plain data; values that JSON does not know are hashed as text."""
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
