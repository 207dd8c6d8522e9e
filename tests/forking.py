"""What processes share that fork fits: they import once, and MLflow's empty database is made once.

Importing PyTorch, Lightning and transformers takes ten seconds, and MLflow's migrations of a new database one.
Everything else of a fit is real in a fork: signals, locks, files.
"""

from __future__ import annotations

import gc
import os
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401  # what the fits import late, every fork would import again
import mlflow.store.db.utils as database
import mlflow.store.tracking.sqlalchemy_store
import mlflow.tracking  # noqa: F401
from sqlalchemy import create_engine

import uniattn_pl.training.fit  # noqa: F401


def before_forking() -> None:
    """Call it once all is imported, before the first fork."""
    _copy_empty_databases()
    gc.freeze()  # what is imported is no garbage: every fork would look through it again and again


def _copy_empty_databases() -> None:
    """Have MLflow begin its SQLite databases as copies of one that it has made itself."""
    made_by_mlflow = database._initialize_tables

    def begin(engine: Any) -> None:
        if engine.dialect.name != "sqlite":
            made_by_mlflow(engine)
            return
        template, connection = _template(), engine.raw_connection()
        with closing(sqlite3.connect(template)) as source:
            source.backup(connection.driver_connection)
        connection.close()

    def _template() -> Path:
        file = Path(os.environ["UNIATTN_PL_CACHE"]) / "empty-mlflow.db"
        if not file.exists():
            with tempfile.TemporaryDirectory(dir=file.parent) as folder:
                made = Path(folder) / file.name
                engine = create_engine(f"sqlite:///{made}")
                made_by_mlflow(engine)
                engine.dispose()
                made.replace(file)
        return file

    database._initialize_tables = begin
