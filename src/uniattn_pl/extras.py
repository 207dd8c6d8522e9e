"""What this package can do without, by the extra that installs it (pyproject.toml has the same lists).

Loading, converting, calibrating and using a model needs the core alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from uniattn_pl.errors import UserError
from uniattn_pl.printed_commands import install

PACKAGE = "uniattn-pl"
# By the name a module is imported by.
EXTRAS = {
    "training": (
        "lightning",
        "mlflow",
        "datasets",
        "matplotlib",
        "optuna",
        "peft",
        "pyarrow",
        "scipy",
        "torchmetrics",
    ),
    "gguf": ("gguf",),
    "serving": ("fastapi", "pydantic", "uvicorn"),
    "evaluation": ("lm_eval",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "quantization": ("bitsandbytes",),
    "slurm": ("submitit",),
}


class MissingExtraError(UserError, ModuleNotFoundError):
    """Something that is asked for needs an extra of this package that is not installed."""


def require_extra(extra: str, what: str, *, modules: Sequence[str] | None = None) -> None:
    """Check, before anything slow starts, that the modules of an extra can be imported.

    Args:
        extra: a key of `EXTRAS`.
        what: is to be done, as the subject of a sentence.
        modules: of them those that it needs; None: all.

    Raises:
        MissingExtraError: naming those that cannot, and what installs them.
    """
    absent = [module for module in modules or EXTRAS[extra] if find_spec(module) is None]
    if absent:
        raise _missing(extra, absent, what)


def missing_extra(error: BaseException, what: str) -> MissingExtraError | None:
    """What to raise for an import that failed for want of an extra; None: it failed for something else."""
    absent = next((e.name.partition(".")[0] for e in _causes(error) if isinstance(e, ImportError) and e.name), None)
    extra = next((name for name, modules in EXTRAS.items() if absent in modules), None)
    return None if extra is None or absent is None or find_spec(absent) else _missing(extra, [absent], what)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _missing(extra: str, absent: list[str], what: str) -> MissingExtraError:
    verb = "is" if len(absent) == 1 else "are"
    return MissingExtraError(
        f"{what} needs {', '.join(absent)}, which {verb} not installed: {install(f'{PACKAGE}[{extra}]')}"
    )
