"""Whether a tracking store takes runs, and what works beside it is installed: found out before a fit."""

from __future__ import annotations

from functools import partial

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.file_contents import unwritable
from uniattn_pl.tracking.mlflow_store import check_experiment, check_uri, database, is_local
from uniattn_pl.tracking.other_loggers import check_loggers
from uniattn_pl.tracking.system_metrics import check_monitors


def check_store(config: TrackingConfig) -> None:
    """Check what a fit needs of its store; a server that does not answer now is waited for by the fit.

    Raises:
        UserError: no such kind of store, an sqlite file that is damaged, deleted experiments, a folder for it that
            cannot be written to, or a store without a registry where there is something to register.
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


def check_beside(config: TrackingConfig) -> None:
    """Raise UserError, with all problems, where what is to measure or to write beside MLflow is not installed."""
    problems: list[str] = []
    for check in (partial(check_loggers, config.also), partial(check_monitors, wanted=config.system_metrics)):
        try:
            check()
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
