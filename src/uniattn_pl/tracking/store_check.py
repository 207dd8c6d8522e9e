"""Whether a tracking store takes runs, found out before a fit and without making one."""

from __future__ import annotations

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import unwritable
from uniattn_pl.tracking.mlflow_store import check_experiment, check_uri, database, is_local


def check_store(config: TrackingConfig) -> None:
    """Check what a fit needs of its store; a server that does not answer now is waited for by the fit.

    Raises:
        UserError: no such kind of store, an sqlite file that is damaged, deleted experiments, or a folder for it that
            cannot be written to.
    """
    check_uri(config.uri)
    if is_local(config):
        file = database(config)
        reason = unwritable(file.parent)
        if reason is None and file.is_dir():
            reason = f"'{file}' is a folder"
        if reason is not None:
            raise UserError(f"tracking.uri '{config.uri}' cannot be opened: {reason}.")
        if not file.exists():
            return  # it is made when the fit starts
    check_experiment(config)
