"""Why a model folder is not loaded, in our words: code that is not run, pickle files, and whatever libraries say."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uniattn_pl.errors import RunFailure, UserError, is_panic

SHOWN_WEIGHTS = 5
WEIGHTS = "model.safetensors"
_NO_SAFETENSORS = (
    "has no weights in safetensors ({}); pickled ones (.bin, .pt) can run code as they are read, so they are not. "
    "Where you trust them, load the model with transformers (or peft) and save_pretrained it."
)


@contextmanager
def refusals_explained(source: str | Path, *, way_out: str, what: str = "") -> Iterator[None]:
    """Say in one sentence why transformers does not load `source`, whatever it raises.

    Only transformers (peft, tokenizers, safetensors) may run in the block: what it raises is then about the source.

    Args:
        source: as the user wrote it.
        way_out: what to do about a model with code of its own.
        what: the part that is read, as in "the tokenizer of ".

    Raises:
        UserError: instead of what was raised; no memory, and what says itself what is wrong, passes.
    """
    import torch

    try:
        yield
    except (UserError, RunFailure, MemoryError, torch.OutOfMemoryError):
        raise
    except OSError as error:
        # About the place that is written to (a converted GGUF) or the machine, not about the source.
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE):
            raise
        raise UserError(_explained(f"{what}'{source}'", error, way_out)) from error
    # There is no list: hundreds of config and model classes compute with what config.json says (KeyError,
    # ZeroDivisionError, AssertionError, StrictDataclassError, RuntimeError of negative sizes ...), and each
    # tokenizer reads files in its own way.
    except Exception as error:
        raise UserError(_explained(f"{what}'{source}'", error, way_out)) from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise UserError(_explained(f"{what}'{source}'", error, way_out)) from error


def _explained(subject: str, error: BaseException, way_out: str) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, ValueError) and "trust_remote_code=True" in text:
        return f"{subject} needs Python code that comes with it, which is not run; {way_out}"
    if isinstance(error, OSError) and "file named model.safetensors" in text:
        return f"{subject} {_NO_SAFETENSORS.format(WEIGHTS)}"
    if "ignore_mismatched_sizes" in text:
        return f"{subject} has weights of other sizes than its config.json says; they are not of the same model."
    return f"{subject} cannot be loaded: {text[:500] or 'no reason given'} ({type(error).__name__})."


def check_complete(source: str | Path, info: Mapping[str, Any]) -> None:
    """Check what `from_pretrained` says of a model's weights: it would start those that are missing at random.

    Raises:
        UserError: naming some of them.
    """
    missing = sorted(info["missing_keys"])
    if missing:
        more = f" and {len(missing) - SHOWN_WEIGHTS} more" if len(missing) > SHOWN_WEIGHTS else ""
        raise UserError(
            f"the weights in '{source}' are not complete: {', '.join(missing[:SHOWN_WEIGHTS])}{more} missing; "
            "get or save them again."
        )


def no_safetensors(source: str | Path, name: str = WEIGHTS) -> str:
    """The message for a folder whose weights are not in safetensors."""
    return f"'{source}' {_NO_SAFETENSORS.format(name)}"
