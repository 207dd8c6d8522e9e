"""Checks of the folder, or the file, that an export is to be written to."""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import check_writable

GGUF_DTYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
"""What the matrices of a GGUF file can be written in, and llama.cpp's name for it; vectors are always float32."""


def check_target(source: Path, target: Path, *, overwrite: bool) -> None:
    """Check that the model in `source` can be written to the folder `target` without loss of anything else.

    Args:
        source: the model folder to read.
        target: absent, empty, or, with `overwrite`, a model folder to replace.

    Raises:
        UserError: the target is a file, overlaps the source, or holds something that is not to be replaced, or
            nothing can be written there.
    """
    real_source, real_target = source.resolve(), target.resolve()
    if target.is_file():
        raise UserError(f"--to '{target}' is a file, not a folder.")
    if real_target == real_source:
        raise UserError(f"--to '{target}' is the folder to export itself.")
    if real_target.is_relative_to(real_source):
        raise UserError(f"--to '{target}' lies inside the model folder '{source}'; choose a folder outside of it.")
    if real_source.is_relative_to(real_target):
        raise UserError(f"--to '{target}' contains the model folder '{source}'; choose another folder.")
    check_writable(target.parent if target.is_dir() else target)  # a folder takes the place of a former one by its name
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not (target / "config.json").is_file():
        raise UserError(
            f"--to '{target}' is not empty and holds no model (no config.json); choose another folder: "
            "--overwrite replaces a model folder only."
        )
    if not overwrite:
        raise UserError(
            f"--to '{target}' is not empty, a model exists there; choose another folder, or pass --overwrite."
        )


def check_gguf_target(source: Path, target: Path, *, overwrite: bool) -> None:
    """Check that the model in `source` can be written to the GGUF file `target`.

    Raises:
        UserError: it is a folder, has another suffix, lies inside the source, is there already, or nothing can be
            written there.
    """
    if target.is_dir():
        raise UserError(f"--to '{target}' is a folder; --format gguf writes one file: {target / 'model.gguf'}.")
    if target.suffix != ".gguf":
        raise UserError(f"--to '{target}' does not end in .gguf, by which llama.cpp and others know such a file.")
    if target.resolve().is_relative_to(source.resolve()):
        raise UserError(f"--to '{target}' lies inside the model folder '{source}'; choose a place outside of it.")
    check_writable(target.parent)
    if target.exists() and not overwrite:
        raise UserError(f"--to '{target}' exists; choose another file, or pass --overwrite.")
