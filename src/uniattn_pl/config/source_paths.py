"""Whether a source is meant as a file or folder, and what is wrong where there is none."""

from __future__ import annotations

from glob import glob
from pathlib import Path

from uniattn_pl.config.published_sets import how_to_build
from uniattn_pl.errors import nearest_path


def looks_like_path(source: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a source can only be meant as a file or folder: a hub id has one slash at most and no file suffix."""
    is_path = source.startswith((".", "/", "~")) or "\\" in source or source.count("/") > 1
    return is_path or source.lower().endswith(suffixes)


def missing_path(source: str, suffixes: tuple[str, ...], kind: str) -> str | None:
    """Return the problem with a source that can only be a path at which there is nothing."""
    path = Path(source)
    if is_pattern(source):
        return None if matching_files(source) else f"no {kind} matches '{source}' (relative to {Path.cwd()})."
    if path.exists() or not looks_like_path(source, suffixes):
        return None
    return f"there is no {kind} '{source}' (relative to {Path.cwd()}).{nearest_path(path)}{how_to_build(source)}"


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern that several files may match, and no file of that very name."""
    return bool(set("*?[") & set(source)) and not Path(source).exists()


def is_there(place: str) -> bool:
    """Whether there is a file or folder of this name, or any file that matches it."""
    return Path(place).exists() or (is_pattern(place) and bool(matching_files(place)))


def matching_files(pattern: str) -> list[Path]:
    """The files that match a pattern (`rows/*.jsonl`, `rows/**/*.parquet`), in the order of their names."""
    found = glob(str(Path(pattern).expanduser()), recursive=True)
    return sorted(path for path in map(Path, found) if path.is_file())
