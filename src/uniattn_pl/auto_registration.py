"""Registers the converted model types with transformers' Auto classes, without importing transformers itself.

`AutoModelForCausalLM.from_pretrained(folder)` must know them after `import uniattn_pl`, in either order of
imports, while `import uniattn_pl` must stay cheap. So an import hook waits for transformers' Auto classes and
registers as soon as the outermost transformers import has finished: earlier, its modules are half made.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

AUTO_CLASSES = "transformers.models.auto.configuration_auto"
WATCHED = ("transformers", "uniattn_pl")


class _RegisterAfterImport(MetaPathFinder):
    """Counts how deep the import of the watched packages is nested and registers on the way out."""

    def __init__(self) -> None:
        self.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find watched modules as the ordinary path finder does, with their execution counted."""
        if not any(fullname == package or fullname.startswith(f"{package}.") for package in WATCHED):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        loader: Any = spec.loader if spec else None
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0 and AUTO_CLASSES in sys.modules:
                self.finish()

        loader.exec_module = exec_module
        return spec

    def finish(self) -> None:
        """Stop watching and register."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            _register()


def install_hook() -> None:
    """Register now if transformers' Auto classes are loaded, else as soon as they are."""
    if AUTO_CLASSES in sys.modules:
        _register()
    elif not any(isinstance(finder, _RegisterAfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisterAfterImport())


def _register() -> None:
    try:
        from uniattn_pl.modeling.conversion.auto_classes import register_auto_classes

        register_auto_classes()
    except (ImportError, AttributeError, ValueError) as error:  # transformers itself must stay usable
        if "vllm" in sys.modules:  # with the transformers that it pins; serving/vllm/plugin.py registers what it needs
            return
        warnings.warn(f"uniattn_pl could not register its model types with transformers: {error}", stacklevel=2)
