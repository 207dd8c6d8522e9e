"""Kernels compile for cards that are not here, with arguments as their launchers give them, and fit their memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kernels.interpreter import NEEDS_TRITON

pytestmark = NEEDS_TRITON
ROOT = Path(__file__).parents[2]
# Bytes of shared memory that a block may have: CUDA programming guide, technical specifications per compute capability.
SHARED = {"89": 99 * 1024, "90": 227 * 1024}
CASES = {"89": "6", "90": "1"}  # the L4 has least of all cards since 2020: what fits there fits everywhere
KERNELS = {"source_kernel", "reader_kernel", "row_source_kernel", "row_reader_kernel", "combine_kernel"}


@pytest.mark.parametrize("capability", SHARED)
def test_every_kernel_compiles_and_fits_untuned(capability: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.kernels.compiled_for_card", capability, CASES[capability]]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    compiled = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {kernel["kernel"] for kernel in compiled} == KERNELS
    assert len({(kernel["head_dim"], kernel["dtype"], kernel["tiles"]) for kernel in compiled}) == int(
        CASES[capability]
    )
    for kernel in compiled:
        assert kernel["shared"] <= SHARED[capability], kernel
        half = kernel["dtype"] != "torch.float32"
        assert kernel["tensor_cores"] == (half and kernel["kernel"] != "combine_kernel"), kernel
