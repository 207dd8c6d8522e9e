"""What a file from elsewhere really holds, and why a place cannot be read or written to."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from uniattn_pl.errors import UserError

TOO_LONG = os.strerror(errno.ENAMETOOLONG)
LONGEST_INSIDE = "checkpoints/stage1/best/.step-00000000-temporary"  # of what a run writes below its folder
_LFS_POINTER = b"version https://git-lfs"
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_PAGES = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<body", b"<error")


def mistaken_content(path: Path) -> str:
    """Say what is in the place of a file when something else is: nothing, a Git LFS pointer, a web page, an archive.

    The words follow the file's name; none for what may be the file itself.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError as error:
        raise UserError(unreadable(path, error)) from error
    if not start:
        return " is empty (0 bytes); was its download or copy interrupted?"
    if start.startswith(_LFS_POINTER):
        return (
            " is a Git LFS pointer, the note that Git keeps instead of a large file; fetch the file itself with "
            "`git lfs install && git lfs pull` in its folder, or download it again."
        )
    if start.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_PAGES):
        return " is a web page (HTML or XML), as a failed download leaves it; download the file again."
    for magic, name in _COMPRESSED.items():
        if start.startswith(magic):
            return f" is compressed ({name}); unpack it first."
    return ""


def unreadable(path: Path, error: OSError) -> str:
    """The message for a file that the operating system does not let us read, or that is none."""
    if path.is_dir():
        return f"'{path}' is a folder where a file is needed."
    if path.is_symlink() and not path.exists():
        return f"'{path}' is a link to '{path.readlink()}', which is not there."
    return f"'{path}' cannot be read ({error.strerror or error})."


def check_writable(folder: Path) -> None:
    """Raise UserError unless files can be written to a folder, or, where it is not there yet, to where it will be."""
    reason = unwritable(folder)
    if reason == TOO_LONG:
        raise UserError(f"'{folder}' cannot be a folder: {reason}.")
    nearest = folder.expanduser().absolute()
    while not nearest.exists() and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        raise UserError(f"'{folder}' cannot be a folder: '{nearest}' is a file.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"nothing can be written to '{folder}': '{nearest}' is read-only for you; name another place.")
    if reason is not None:
        raise UserError(f"nothing can be written to '{folder}': {reason}; name another place.")


def unwritable(folder: Path) -> str | None:
    """Why `folder` cannot be made, or nothing be written into it; None: it can.

    A file is made and removed in the nearest folder that is there: permissions alone do not tell of read-only file
    systems, quotas, or folders such as /proc.
    """
    try:
        existing = next(place for place in (folder, *folder.parents, Path()) if os.path.lexists(place))
        longest = os.pathconf(existing, "PC_NAME_MAX"), os.pathconf(existing, "PC_PATH_MAX")
        below = os.fsencode(folder.absolute() / LONGEST_INSIDE)
        if max(map(len, below.split(b"/"))) > longest[0] or len(below) > longest[1]:
            return TOO_LONG
        if not existing.is_dir():
            return f"'{existing}' is no folder"
        with tempfile.TemporaryFile(dir=existing):
            return None
    except OSError as error:
        return error.strerror
    except ValueError as error:  # a NUL character in the name
        return str(error)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold one object.

    Raises:
        UserError: the file cannot be read, is something else (an LFS pointer, a web page), or holds no JSON object.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text)
    except OSError as error:
        raise UserError(unreadable(path, error)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}'{mistaken_content(path) or ' is not UTF-8 text, so not JSON.'}") from error
    except json.JSONDecodeError as error:
        reason = f" is not valid JSON ({error.msg} at line {error.lineno}, column {error.colno})."
        raise UserError(f"'{path}'{mistaken_content(path) or reason}") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits; thousands of brackets
        raise UserError(f"'{path}' holds JSON that cannot be read ({error}).") from error
    if not isinstance(value, dict):
        kind = {list: "a list", str: "a string", type(None): "null"}.get(type(value), "a number or boolean")
        raise UserError(f"'{path}' holds {kind}; it must be a JSON object.")
    return value
