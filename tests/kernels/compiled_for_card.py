"""Compile every kernel for a card that need not be here, as its launcher would: prints what each takes, as JSON lines.

Run by itself (`python -m tests.kernels.compiled_for_card CAPABILITY CASES`), since kernels are not interpreted here.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from uniattn_pl.kernels.map_handles import HeadIndex
from uniattn_pl.kernels.triton_maps import kept_rows as rows
from uniattn_pl.kernels.triton_maps.kept_tiles import tiled_attention, tiled_product
from uniattn_pl.kernels.triton_maps.tile_layout import MaskStructure

BATCH, HEADS, GROUPS, LENGTH = 1, 8, 2, 256

BF16, FP32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
CASES = ((128, BF16, FP8), (128, BF16, BF16), (64, BF16, BF16), (256, BF16, BF16), (128, FP32, FP32), (256, FP32, FP32))


class AbsentCard:
    """A driver for a card of some compute capability, on which nothing can be launched."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compile_all(capability: int, head_dim: int, dtype: torch.dtype, tile_dtype: torch.dtype) -> list[dict[str, Any]]:
    """Name, bytes of shared memory and use of the tensor cores of each kernel that one head size launches."""
    compiled: list[Any] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(kernel, *args, grid=grid, warmup=True, **options))

    triton.runtime.driver.set_active(AbsentCard(capability))
    JITFunction.run = compile_only
    try:
        query = torch.zeros(BATCH, HEADS, LENGTH, head_dim, dtype=dtype)
        key, value = torch.zeros(2, BATCH, GROUPS, LENGTH, head_dim, dtype=dtype)
        heads = HeadIndex(range(HEADS))
        starts, sinks = torch.zeros(BATCH, dtype=torch.int32), torch.zeros(HEADS)
        plain: dict[str, Any] = {"tile_dtype": tile_dtype}
        everything = {**plain, "structure": MaskStructure(0, 100, starts), "softcap": 5.0, "sinks": sinks}
        for options in (plain, everything):
            _, tiled_map = tiled_attention(query, key, value, **options)
        tiled_product(tiled_map, value)
        tiled_product(tiled_map, value, heads)
        mask = torch.ones(BATCH, 1, 1, LENGTH, dtype=torch.bool)
        one = query[..., :1, :]
        _, row = rows.row_attention(one, key, value)
        rows.row_attention(one, key, value, mask, softcap=5.0, sinks=sinks)
        rows.row_product(row, value)
        rows.row_product(row, value, heads)
    finally:
        JITFunction.run = run
    facts = []
    for kernel in compiled:
        code = kernel.asm["ptx"]
        tensor_cores = any(word in code for word in ("mma.sync", "wgmma.mma_async", "tcgen05.mma"))
        facts.append({"kernel": kernel.metadata.name, "shared": kernel.metadata.shared, "tensor_cores": tensor_cores})
    return facts


if __name__ == "__main__":
    for size, dtype, tiles in CASES[: int(sys.argv[2])]:
        for line in compile_all(int(sys.argv[1]), size, dtype, tiles):
            print(json.dumps({"head_dim": size, "dtype": str(dtype), "tiles": str(tiles), **line}), flush=True)
