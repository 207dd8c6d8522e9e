"""The layout of a run folder: the names a run writes into it, and which of its folders holds the model."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from uniattn_pl.errors import UserError, nearest_path
from uniattn_pl.file_contents import check_writable

# File systems take 255 bytes; names of temporary folders and of files beside a run are longer than its own.
LONGEST_NAME = 200
SWEEP_ENTRY = "sweep"
FINAL, SEARCH_FOLDER = "final", "search"
MANIFEST = "manifest.json"
MODEL_FILES = ("config.json", "adapter_config.json")
# What fit, analyze, bench and evaluate write directly in a run folder.
RUN_ENTRIES = (
    MANIFEST,
    ".lock",
    "identity.json",
    "provenance.json",
    "final_table.txt",
    SEARCH_FOLDER,
    "calibration",
    "checkpoints",
    "initial",
    "stage1",
    "adapter",
    "final",
    "tracking",
    "loggers",
    "analysis",
    "bench",
    "evaluation",
)


def check_run_folder(folder: Path) -> None:
    """Check that a run folder can be written to and that no part of it is a link out of it.

    Raises:
        UserError: it is read-only, or naming the link and where it leads: a run writes and deletes in its own folder
            only.
    """
    check_writable(folder)
    for name in RUN_ENTRIES if folder.is_dir() else ():
        if (folder / name).is_dir():
            check_writable(folder / name)
    root = os.path.realpath(folder)
    for path in _parts(folder):
        real = os.path.realpath(path)
        if os.path.islink(path) and os.path.commonpath([root, real]) != root:
            raise UserError(
                f"'{path}' is a link to '{real}', outside of the run folder; remove the link, or let "
                "trainer.default_root_dir be a folder there."
            )


def _parts(folder: Path) -> Iterator[str]:
    """Yield every path of a run folder that a run may write to; a user's other files in it are not looked at."""
    for entry in (folder / name for name in RUN_ENTRIES):
        yield str(entry)
        for parent, folders, files in os.walk(entry):
            yield from (os.path.join(parent, name) for name in (*folders, *files))


def is_run(folder: Path) -> bool:
    """Whether a fit has worked in a folder."""
    return (folder / MANIFEST).is_file() and not _is_bookkeeping(folder)


def _is_bookkeeping(folder: Path) -> bool:
    """Whether a folder is the `sweep/` of a sweep, whose manifest lists points; a run may have that name, too."""
    if folder.name != SWEEP_ENTRY:
        return False
    try:
        return "points" in json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):  # not there, no UTF-8, no JSON, a number
        return False


def name_problem(name: str) -> str | None:
    """Return why a folder cannot have this name of a run or of a sweep's point, or None."""
    if len(name.encode("utf-8", errors="replace")) > LONGEST_NAME:
        return f"it names a folder, of at most {LONGEST_NAME} bytes; got {len(name)} characters."
    if re.fullmatch(r"\w[\w.+=,-]*", name):
        return None
    return f"it names a folder: letters, digits and . _ + - = , only, and no leading dot; got {name!r}."


def model_folder(folder: Path) -> Path:
    """Return `folder`, or `final` inside it, whichever holds a model. Raises UserError as `find_model_folder`."""
    if folder.is_file():
        raise UserError(f"'{folder}' is a file; give the folder it is in: {_advice(folder.parent)}")
    if not folder.is_dir():
        raise UserError(f"there is no folder '{folder}'.{_nearest_folder(folder)}")
    for candidate in (folder / FINAL, folder):
        if has_model(candidate):
            return candidate
    raise UserError(f"'{folder}' holds no model: {_advice(folder)}")


def run_name(place: Path) -> str:
    """What a model is called by where it is: a run's name, not that of its `final/`; a file's without its suffix."""
    place = place.absolute()
    if place.is_file():
        return place.stem
    return place.parent.name if place.name in RUN_ENTRIES and is_run(place.parent) else place.name


def has_model(folder: Path) -> bool:
    """Whether a folder is that of a model, or of an adapter."""
    return any((folder / name).is_file() for name in MODEL_FILES)


def _advice(folder: Path) -> str:
    """What to give in place of a folder that holds no model, or of a file in it."""
    if has_model(folder) or has_model(folder / FINAL):
        return f"'{folder}'."
    folder = folder.parent if _is_bookkeeping(folder) else folder
    within = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    finished = [entry.name for entry in within if has_model(entry / FINAL)]
    if _is_bookkeeping(folder / SWEEP_ENTRY):
        begun = ", ".join(entry.name for entry in within if is_run(entry))
        points = f"give one of its finished points: {', '.join(finished)}."
        return f"it is the folder of a sweep; {points if finished else f'none of its points is finished ({begun}).'}"
    run = next((place for place in (folder, *folder.absolute().parents) if is_run(place)), None)
    if run is not None and run != folder:
        return f"it is a part of the run '{run}' and no model; give the run itself."
    if run is not None:
        models = [entry.name for entry in within if has_model(entry)]
        on_the_way = f"; what it has so far is in '{folder / models[-1]}'" if models else ""
        return f"the fit in it is not finished, which writes '{FINAL}'{on_the_way}."
    if finished:
        return f"it holds runs; give one of them: {', '.join(finished)}."
    return f"no config.json in it, nor in its subfolder '{FINAL}' that a finished fit writes."


def _nearest_folder(folder: Path) -> str:
    hint, parent = nearest_path(folder), folder.parent
    if hint or not parent.is_dir():
        return hint
    names = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return f" In '{parent}' there are: {', '.join(names[:20])}." if names else ""


def run_of(folder: Path) -> Path | None:
    """The run that a folder is, or is a model folder of."""
    if not folder.is_dir():
        return None
    return next((place for place in (folder, folder.absolute().parent) if is_run(place)), None)
