"""The state of a journal's delivery, kept in a file beside the journal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from uniattn_pl.files import atomic_file

FILE = "delivered.json"


@dataclass(frozen=True)
class DeliveryState:
    """How far delivery has come.

    Attributes:
        place: the store it went to; delivery into another one begins anew.
        run_id: the MLflow run, once known.
        offset: bytes of the journal that are delivered.
        held: operations before the offset whose own place (of artifacts, data sets, models) could not take them yet.
    """

    place: str
    run_id: str | None = None
    offset: int = 0
    held: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take the names of artifacts, which is what a former version wrote."""
        names = [{"op": "artifact", "path": held} if isinstance(held, str) else held for held in self.held]
        object.__setattr__(self, "held", names)

    @classmethod
    def read(cls, path: Path) -> DeliveryState | None:
        """Return what the file says, or None when there is none or it is damaged: nothing is sent twice anyway."""
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, path: Path) -> None:
        """Replace the file in one step."""
        with atomic_file(path) as file:
            file.write(json.dumps(asdict(self)).encode())
