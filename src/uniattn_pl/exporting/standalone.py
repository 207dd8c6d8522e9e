"""The code that loads a converted model where this package is not installed (`trust_remote_code=True`).

The package's own modules are copied, not written again: those that `modeling.conversion.converted_classes` imports,
beside each other, with relative imports, which is what transformers fetches with a model folder.
"""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

from transformers import PreTrainedModel

from uniattn_pl.errors import UserError
from uniattn_pl.families.encoder_decoder import auto_model
from uniattn_pl.families.inspection import MODEL_TYPE_PREFIX

PACKAGE = "uniattn_pl"
ROOT = "uniattn_pl.modeling.conversion.converted_classes"
ENTRY = "modeling_uniattn"
IMPORT = re.compile(r"^( *from )uniattn_pl((?:\.\w+)+)( import )", flags=re.MULTILINE)


def make_standalone(model: PreTrainedModel, folder: Path) -> None:
    """Write the loading code into `folder` and name it in the model's config, which is saved afterwards.

    Raises:
        UserError: the model is stock, so it needs no code.
    """
    config = model.config
    if not config.model_type.startswith(MODEL_TYPE_PREFIX):
        raise UserError(f"this {config.model_type} model has no layer plan: it loads anywhere, without --standalone.")
    for module, source in _needed_modules(ROOT).items():
        (folder / f"{_flat(module)}.py").write_text(_relative(source), encoding="utf-8")
    stock_model: type[PreTrainedModel] = type(model).stock  # type: ignore[attr-defined]
    stock_config = type(config).__mro__[1]
    names = {"config": type(config).__name__, "model": type(model).__name__}
    (folder / f"{ENTRY}.py").write_text(
        f'''"""The classes of this model, on top of transformers' own {stock_model.__name__}; made by uniattn_pl."""

from {stock_config.__module__} import {stock_config.__name__}
from {stock_model.__module__} import {stock_model.__name__}

from .{_flat(ROOT)} import make_config_class, make_model_class

{names["config"]} = make_config_class({stock_config.__name__}, __name__)
{names["model"]} = make_model_class({stock_model.__name__}, {names["config"]}, __name__)
''',
        encoding="utf-8",
    )
    config.auto_map = {
        "AutoConfig": f"{ENTRY}.{names['config']}",
        auto_model(config).__name__: f"{ENTRY}.{names['model']}",
    }


def _needed_modules(root: str) -> dict[str, str]:
    """The sources of a module of this package and of all it imports from this package."""
    sources: dict[str, str] = {}
    waiting = [root]
    while waiting:
        name = waiting.pop()
        if name in sources:
            continue
        sources[name] = inspect.getsource(import_module(name))
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{PACKAGE}."):
                waiting.append(str(node.module))
    return sources


def _relative(source: str) -> str:
    return IMPORT.sub(lambda match: f"{match[1]}.{_flat(PACKAGE + match[2])}{match[3]}", source)


def _flat(module: str) -> str:
    return f"uniattn_{module.rpartition('.')[2]}"
