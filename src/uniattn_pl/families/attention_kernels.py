"""The attention kernels that transformers names, told apart by what they want; knows nothing of torch."""

from __future__ import annotations

FLASH_PACKAGES = {
    "flash_attention_2": "flash-attn",
    "flash_attention_3": "flash-attn-3",
    "flash_attention_4": "flash-attn-4",
}
"""Kernel -> the package that brings it."""

WITH_MAPS = ("sdpa", "eager")
"""Kernels that take masks which a map can be masked with; elsewhere a map is computed again by its readers."""

ATTENTION_BACKENDS = (*WITH_MAPS, "flex_attention", *FLASH_PACKAGES)
