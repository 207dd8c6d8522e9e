"""`model`: which pre-trained model, and how it is held in memory."""

from __future__ import annotations

from dataclasses import dataclass

from uniattn_pl.families.attention_kernels import ATTENTION_BACKENDS
from uniattn_pl.options import option
from uniattn_pl.plan import REUSE_MODES

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass
class ModelConfig:
    """Which pre-trained model, and how it is held in memory."""

    source: str = option("smollm2-135m", "hub id, local folder, .gguf file, or a name from `list models`", path=True)
    dtype: str = option("auto", "auto: bfloat16 where the hardware has it, else float32", allowed=DTYPES)
    attn_implementation: str = option(
        "sdpa", "attention kernel of layers that compute their map", allowed=ATTENTION_BACKENDS
    )
    reuse: str = option(
        "auto",
        "how reuse layers get the map: kept (materialise), computed again (replay), kept by Triton on a card (tiles)",
        allowed=REUSE_MODES,
    )
    map_memory_mib: int | None = option(
        None, "MiB for one attention map, bounds the chunks of a prefill; default: by the device", minimum=1
    )
    revision: str | None = option(None, "branch, tag or commit of a hub model")
    trust_remote_code: bool = option(False, "run Python code that comes with a hub model")
