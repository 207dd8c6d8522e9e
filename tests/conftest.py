"""Every test runs offline and keeps its model cache to itself."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

import pytest

LONG = ("training", "sweeps", "tracking", "faults")

# Before any test imports transformers or datasets: both read these once.
for _name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS"):
    os.environ[_name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Workers share the cores; threads of several processes that wait for each other are many times slower than one.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if "UNIATTN_PL_CACHE" not in os.environ:
    os.environ["UNIATTN_PL_CACHE"] = tempfile.mkdtemp(prefix="uniattn_pl-tests-")
    atexit.register(shutil.rmtree, os.environ["UNIATTN_PL_CACHE"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run whole fits first: behind the others one worker would be left with them alone."""
    items.sort(key=lambda item: item.path.parent.name not in LONG)
