"""docs/api.md, made of the signatures and docstrings of what `uniattn_pl` exports."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import uniattn_pl

HEAD = """\
# Python API

What `import uniattn_pl` gives, made of its docstrings by `uniattn-pl list api`. The import itself is quick and light:
each name is loaded when it is first used, and says so where it needs an extra that is not installed. Everything else in
the package can be imported from where it is ([architecture.md](architecture.md)), and may move.

"""
GROUPS = {
    "Models": (
        "load_model",
        "load_tokenizer",
        "apply_architecture",
        "apply_plan",
        "LayerPlan",
        "kv_cache_bytes",
        "drop_attention",
        "unmodified_copy",
    ),
    "Calibration and training": ("calibrate", "CalibrationReport", "fit", "FinishedFit", "lora_config"),
    "Callbacks for a Trainer of your own": (
        "CompensationInit",
        "StageFreezing",
        "EMAEarlyStop",
        "HeldOutLoss",
        "HeldOutEarlyStop",
        "DivergenceStop",
        "StepMetrics",
        "Throughput",
        "TrainingProgress",
        "RngState",
        "Provenance",
    ),
    "Extending, errors": ("register", "register_family", "UserError"),
}
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises|Example):$", re.MULTILINE)
EXAMPLE = "Example"
WIDEST = 100  # characters of a signature on one line


def api_page() -> str:
    """The whole page."""
    return HEAD + "\n".join(
        "\n".join([f"## {title}", "", *(line for name in names for line in _entry(name))])
        for title, names in GROUPS.items()
    )


def _entry(name: str) -> Iterator[str]:
    found = getattr(uniattn_pl, name)
    yield from (f"### `{name}`", "", "```text", _signature(f"uniattn_pl.{name}", found), "```", "")
    summary, *sections = SECTION.split(inspect.getdoc(found) or "")
    yield from (summary.strip(), "")
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        yield from (f"{title}:", "", *(_code(body) if title == EXAMPLE else _items(body)), "")
    methods = [*_methods(found)] if inspect.isclass(found) else []
    if methods:
        yield from (*methods, "")


def _code(body: str) -> Iterator[str]:
    """An example, with what it takes for granted."""
    lines = inspect.cleandoc(body).splitlines()
    imported = [line for line in lines if line.startswith(("import ", "from "))]
    others = [line for line in lines if line not in imported]
    while others and not others[0]:
        others.pop(0)
    yield from ("```python", *imported, *([] if "import uniattn_pl" in imported else ["import uniattn_pl"]))
    yield from ("", *others, "```")


def _items(body: str) -> Iterator[str]:
    """The entries of a section, `name: text` with further lines indented, as a list."""
    lines = inspect.cleandoc(body).splitlines()
    for line in lines:
        name, colon, text = line.partition(": ")
        if line.startswith(" ") or not colon:
            yield f"  {line.strip()}" if line.strip() else ""
        else:
            yield f"- {', '.join(f'`{part}`' for part in name.split(', '))}: {text}"


def _methods(kind: type) -> Iterator[str]:
    """What a class has of its own that a docstring speaks of."""
    for name, member in vars(kind).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        called = "" if isinstance(member, property) else _arguments(function)
        yield f"- `.{name}{called}`: {' '.join(inspect.cleandoc(function.__doc__).split(chr(10) * 2)[0].split())}"


def _arguments(function: Any) -> str:
    """The parameters of a method, without their types."""
    bare = [p.replace(annotation=p.empty) for p in list(inspect.signature(function).parameters.values())[1:]]
    return str(inspect.Signature(bare))


def _signature(name: str, found: Any) -> str:
    signature = inspect.signature(found)
    parameters = [p.replace(annotation=_Bare(p.annotation)) for p in signature.parameters.values()]
    returned = signature.return_annotation
    arrow = "" if returned in (signature.empty, None, "None") else f" -> {returned}"
    line = f"{name}{inspect.Signature(parameters)}{arrow}"
    if len(line) <= WIDEST:
        return line
    parts = [str(parameter) for parameter in parameters]
    first_named = next((i for i, p in enumerate(parameters) if p.kind is p.KEYWORD_ONLY), None)
    if first_named is not None:
        parts.insert(first_named, "*")
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){arrow}"])


class _Bare(str):
    """An annotation, which modules here keep as text, without quotes."""

    __repr__ = str.__str__
