"""How many inputs are drawn: 100 a reader by default, 10,000 with `--hypothesis-profile=long`, 100,000 with `=deep`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from uniattn_pl.families.catalogue import named_model

QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("long", max_examples=10_000, **QUIET)
settings.register_profile("deep", max_examples=100_000, **QUIET)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder, one of whose files a test overwrites."""
    return Path(shutil.copytree(named_model("tiny-llama"), tmp_path_factory.mktemp("fuzz") / "model"))


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")
