"""Triton's interpreter, which runs kernels on a CPU: loaded once, before anything compiles for a card.

Whether a kernel is interpreted is decided where it is defined. In a process without a card all are; our own choice of
kernels still counts a CPU as one without Triton unless TRITON_INTERPRET is set (`interpreted`).
"""

from __future__ import annotations

import os
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy
import pytest
import torch

TORCH_TYPES = {"bf16": torch.bfloat16, "fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2}
MODULES = (
    "triton.experimental.gluon.language",  # else loaded by a first launch, when nothing says it is interpreted
    "uniattn_pl.kernels.triton_maps.row_kernels",
    "uniattn_pl.kernels.triton_maps.tiled_kernels",
)
NEEDS_TRITON = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed (Linux only)")


def load_interpreter() -> None:
    """Define the kernels as interpreted ones, where there is no card."""
    if find_spec("triton") is None or torch.cuda.is_available():
        return
    former = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        for module in MODULES:
            import_module(module)
    finally:
        if former is None:
            del os.environ["TRITON_INTERPRET"]
    _mend(import_module("triton.runtime.interpreter"))


def _mend(interpreter: Any) -> None:
    """Numbers as a card has them: the interpreter cuts bfloat16 off where it should round, loses the carry in 8 bits
    (127 becomes 64), and multiplies the bits of bfloat16 as if they were integers."""
    convert, builder = interpreter._convert_float, interpreter.InterpreterBuilder
    dot, float32 = builder.create_dot, interpreter.tl.float32

    def rounded(values: Any, given: Any, wanted: Any, rounding: Any) -> Any:
        kind = TORCH_TYPES.get(getattr(wanted, "name", ""))
        if kind is None or getattr(given, "name", "") != "fp32":
            return convert(values, given, wanted, rounding)
        bits = torch.from_numpy(numpy.ascontiguousarray(values).view(numpy.float32)).to(kind)
        return bits.view(torch.uint8 if kind.itemsize == 1 else torch.uint16).numpy()

    def product(self: Any, left: Any, right: Any, *rest: Any) -> Any:
        factors = (
            self.cast_impl(side, float32) if side.dtype.scalar.name == "bf16" else side for side in (left, right)
        )
        return dot(self, *factors, *rest)

    interpreter._convert_float, builder.create_dot = rounded, product


def runs_on(device: str) -> None:
    """Skip a kernel's case for the CPU on a machine with a card, where kernels are compiled."""
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("kernels are compiled for the card here")


def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the choice of kernels count a CPU as a place where Triton runs."""
    if not torch.cuda.is_available():
        monkeypatch.setenv("TRITON_INTERPRET", "1")
