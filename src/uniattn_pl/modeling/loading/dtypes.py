"""Which dtype a model is loaded in."""

from __future__ import annotations

import torch


def resolve_dtype(dtype: str) -> torch.dtype:
    """`auto` takes bfloat16 only where it is in hardware: emulated, it is slower than float32."""
    if dtype != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
    return torch.bfloat16 if computes_in_bfloat16() else torch.float32


def computes_in_bfloat16() -> bool:
    """Whether this machine's GPU, or its CPU where it has none, has bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # torch 2.10
        return bool(torch.cpu._is_avx512_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
