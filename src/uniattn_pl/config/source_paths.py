"""Whether a source is meant as a file or folder, and what is wrong where there is none."""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.config.yaml_documents import nearest_file


def looks_like_path(source: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a source can only be meant as a file or folder: a hub id has one slash at most and no file suffix."""
    is_path = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    return is_path or source.lower().endswith(suffixes)


def missing_path(source: str, suffixes: tuple[str, ...], kind: str) -> str | None:
    """Return the problem with a source that can only be a path at which there is nothing."""
    path = Path(source)
    if path.exists() or not looks_like_path(source, suffixes):
        return None
    return f"there is no {kind} '{source}' (relative to {Path.cwd()}).{nearest_file(path)}"
