"""MLflow runs of commands that are never resumed: an analysis, a benchmark."""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.tracking.mlflow_run import MLflowRun, deliver_pending

FOLDER = "undelivered"


@contextmanager
def one_off_run(
    config: TrackingConfig, folder: Path, *, name: str, tags: Mapping[str, str], tell: Callable[[str], None] = print
) -> Iterator[MLflowRun]:
    """Yield a new run that ends with the block; its journal in `folder` is deleted once it is delivered.

    What an earlier command in this folder could not deliver is delivered first.

    Raises:
        UserError: as `MLflowRun.open`.
    """
    for earlier in sorted((folder / FOLDER).glob("*")):
        if deliver_pending(config, earlier, tell=tell) == 0:
            shutil.rmtree(earlier)
    fit_id = uuid.uuid4().hex
    kept = folder / FOLDER / fit_id
    run = MLflowRun.open(config, name=name, fit_id=fit_id, run_id=None, tags=tags, folder=kept, tell=tell)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        if run.end(status):
            shutil.rmtree(kept)
            with contextlib.suppress(OSError):  # others may have left something too
                kept.parent.rmdir()
        else:
            tell(f"{run.leftover()}; the next such command in {folder} delivers them.")
