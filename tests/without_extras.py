"""Runs Python in a process in which only the core of the package is installed, as far as imports can tell.

What the extras bring is found by no import there, nor by `importlib.util.find_spec`, as if it had not been installed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from uniattn_pl.extras import EXTRAS

# What they bring along, and would be found although its owner is gone.
BROUGHT = ("pytorch_lightning", "lightning_fabric", "pandas", "sqlalchemy", "alembic", "starlette", "sklearn")
ABSENT = sorted({*BROUGHT, *(module for modules in EXTRAS.values() for module in modules)})
HIDE = """
import sys

class Without:
    def __init__(self, finder, absent):
        self.finder, self.absent = finder, absent

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in self.absent:
            return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Without(finder, {absent!r}) for finder in sys.meta_path]
"""


def run_without(code: str, folder: Path, absent: Sequence[str] = ABSENT) -> subprocess.CompletedProcess[str]:
    """Run code in a folder, with these modules absent."""
    whole = HIDE.replace("{absent!r}", repr(set(absent))) + code
    return subprocess.run([sys.executable, "-c", whole], cwd=folder, capture_output=True, text=True, timeout=300)
