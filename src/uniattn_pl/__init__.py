"""Post-train pre-trained LLMs with unified attention maps (UniAttn) so that inference gets cheaper.

Importing this package is cheap; models and torch are imported when an attribute below is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from uniattn_pl.auto_registration import install_hook

if TYPE_CHECKING:
    from uniattn_pl.architectures import register
    from uniattn_pl.modeling.caches.plan_cache import kv_cache_bytes
    from uniattn_pl.modeling.conversion.auto_classes import register_family
    from uniattn_pl.modeling.conversion.convert import apply_architecture, drop_attention, unmodified_copy
    from uniattn_pl.modeling.loading.pretrained import load_model
    from uniattn_pl.modeling.lora import lora_config

__version__ = "0.1.0"
__all__ = [
    "__version__",
    "apply_architecture",
    "drop_attention",
    "kv_cache_bytes",
    "load_model",
    "lora_config",
    "register",
    "register_family",
    "unmodified_copy",
]

_HOMES = {
    "apply_architecture": "uniattn_pl.modeling.conversion.convert",
    "kv_cache_bytes": "uniattn_pl.modeling.caches.plan_cache",
    "drop_attention": "uniattn_pl.modeling.conversion.convert",
    "load_model": "uniattn_pl.modeling.loading.pretrained",
    "lora_config": "uniattn_pl.modeling.lora",
    "register_family": "uniattn_pl.modeling.conversion.auto_classes",
    "register": "uniattn_pl.architectures",
    "unmodified_copy": "uniattn_pl.modeling.conversion.convert",
}

install_hook()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'uniattn_pl' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
