"""A point of a sweep: one experiment, with the words that make it of the sweep's config."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from uniattn_pl.config import LoadedConfig
from uniattn_pl.redaction import redact
from uniattn_pl.resilience.manifest import key_of


@dataclass(frozen=True)
class Point:
    """One experiment of a sweep.

    Attributes:
        name: readable, and a folder's name.
        words: the overrides that make the sweep's config this point's, as on a command line.
        loaded: the checked experiment.
        teacher: key of the point that is fitted first, since this one learns from it; None: it learns from none.
    """

    name: str
    words: tuple[str, ...]
    loaded: LoadedConfig
    teacher: str | None = None

    @cached_property
    def key(self) -> str:
        """Identifies the experiment: a point whose config has changed in what it computes is another one."""
        return key_of(redact(dataclasses.asdict(self.loaded.config)))
