"""A local store that was moved or copied, as with its project: its artifacts are then beside it, not where they were.

MLflow keeps the absolute place of artifacts in every experiment and run, and would go on writing to the former one.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

OF_RUNS = "run_id IN (SELECT run_uuid FROM runs WHERE experiment_id = ?)"
# Table, column and rows of what lies among an experiment's artifacts: of runs, logged models and registered versions.
PLACES = (
    ("runs", "artifact_uri", "experiment_id = ?"),
    ("logged_models", "artifact_location", "experiment_id = ?"),
    ("model_versions", "storage_location", OF_RUNS),
    ("model_versions", "source", OF_RUNS),
)
STORE_TAG = "uniattn_pl.store"  # of an experiment: the database file it was last opened in


def follow(database: Path) -> None:
    """Let the experiments of this program that were opened in another place have their artifacts here.

    Whoever holds the store's lock calls it. Artifacts outside of the folder that was moved stay where they are.

    Raises:
        sqlite3.OperationalError: the file is locked by another program, or has no tables of MLflow's.
    """
    here = database.resolve()
    with closing(sqlite3.connect(f"{here.as_uri()}?mode=rw", uri=True)) as connection, connection:
        moved = connection.execute(
            "SELECT e.experiment_id, e.artifact_location, t.value FROM experiments e JOIN experiment_tags t "
            "ON t.experiment_id = e.experiment_id WHERE t.key = ? AND t.value != ?",
            (STORE_TAG, str(here)),
        ).fetchall()
        for experiment, location, former in moved:
            connection.execute(
                "UPDATE experiment_tags SET value = ? WHERE experiment_id = ? AND key = ?",
                (str(here), experiment, STORE_TAG),
            )
            new = _moved(location or "", Path(former), here)
            if new is None:
                continue
            connection.execute(
                "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment)
            )
            for table, column, rows in PLACES:
                moving = f"UPDATE {table} SET {column} = ? || substr({column}, ?)"
                connection.execute(
                    f"{moving} WHERE {rows} AND substr({column}, 1, ?) = ?",
                    (new, len(location) + 1, experiment, len(location), location),
                )


def _moved(location: str, former: Path, here: Path) -> str | None:
    """Where artifacts are that were at a location beside a database in its former place; None: where they were."""
    parts = urlsplit(location)
    if parts.scheme not in ("", "file") or not location:
        return None
    place = Path(url2pathname(parts.path) if parts.scheme else location)
    new = Path(os.path.normpath(here.parent / os.path.relpath(place, former.parent)))
    if new == place:
        return None
    # beside the database, or in the folder above it, which is the project's where the database is in its mlruns/
    together = place.is_relative_to(former.parent) or (
        place.is_relative_to(former.parent.parent) and (new.exists() or not place.exists())
    )
    return (new.as_uri() if parts.scheme else str(new)) if together else None
