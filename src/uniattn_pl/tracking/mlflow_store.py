"""The MLflow store: connecting to it, finding or creating a fit's run, and telling a mistake from an outage."""

from __future__ import annotations

import logging
import os
import sqlite3
from contextlib import closing
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError, did_you_mean
from uniattn_pl.files import exclusive_lock
from uniattn_pl.printed_commands import mlflow_on
from uniattn_pl.redaction import redact
from uniattn_pl.tracking.model_registry import check_registry
from uniattn_pl.tracking.moved_store import STORE_TAG, follow

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

FIT_TAG = "uniattn_pl.fit_id"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql", "databricks")
# MLflow 3 opens an experiment on its pages for chat applications otherwise, where no run is seen.
KIND = {"mlflow.experimentKind": "custom_model_development"}
# Nobody asked for reports of what is run to be sent.
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
# MLflow would try for ten minutes; and it sends a request of unknown outcome again, which may record it twice
HTTP_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
# an error of a server's own database is BAD_REQUEST, and a proxy before a dead server says ENDPOINT_NOT_FOUND
INVALID = "INVALID_PARAMETER_VALUE"
REFUSALS = {INVALID, "RESOURCE_DOES_NOT_EXIST", "PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}


class DamagedDatabaseError(UserError):
    """The sqlite file of tracking.uri cannot be read as a database."""


def check_uri(uri: str) -> None:
    """Check what can be known of a tracking URI without a store.

    Raises:
        UserError: it is a plain folder, which MLflow no longer writes to, or of a scheme MLflow does not have.
    """
    scheme = uri.split(":", 1)[0] if ":" in uri else ""
    if (scheme == "" and uri != "databricks") or scheme == "file":
        raise UserError(
            f"tracking.uri is the folder '{uri}', which MLflow 3 no longer writes to; "
            "use a database such as sqlite:///mlruns/mlflow.db, or a server's http(s) address."
        )
    plugins = {point.name for point in entry_points(group="mlflow.tracking_store")}
    dialect = scheme.split("+", 1)[0]
    if dialect and dialect not in {*SCHEMES, *plugins}:
        raise UserError(
            f"tracking.uri '{redact(uri)}' begins with '{scheme}:'; MLflow knows {', '.join(SCHEMES)}."
            + did_you_mean(dialect, SCHEMES)
        )
    if dialect == "sqlite" and uri.removeprefix(f"{scheme}:///") in (uri, ""):
        raise UserError(f"tracking.uri '{uri}' names no database file; write sqlite:///folder/mlflow.db.")
    if dialect in ("http", "https") and not urlsplit(uri).hostname:
        raise UserError(f"tracking.uri '{redact(uri)}' names no server; write {dialect}://host:port.")


def is_local(config: TrackingConfig) -> bool:
    """Whether the store is an sqlite file."""
    return config.uri.startswith("sqlite")


def database(config: TrackingConfig) -> Path:
    """The file of a local store."""
    return Path(config.uri.split("///", 1)[1].partition("?")[0])


def place(config: TrackingConfig) -> str:
    """Which store it is, without credentials; the same wherever the process runs."""
    return f"sqlite:///{database(config).resolve()}" if is_local(config) else str(redact(config.uri))


def connect(config: TrackingConfig) -> MlflowClient:
    """Return a client, creating an sqlite database exactly once even when several fits start together.

    Raises:
        UserError: the URI is not a store's, or the database's folder cannot be written to.
        DamagedDatabaseError: the sqlite file is no database, or is corrupt.
    """
    check_uri(config.uri)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    from mlflow.tracking import MlflowClient

    # it narrates the making of tables, and prints a traceback for every error that it raises as well
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    if not is_local(config):
        for name, value in HTTP_DEFAULTS.items():
            os.environ.setdefault(name, value)
        return MlflowClient(config.uri)
    file = database(config)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(file.with_name(file.name + ".lock")):
            if file.exists():
                _check_database(file)
                follow(file)
            else:
                _create_database(file)
            # absolute: MLflow keeps a connection for every address, also when the working folder has changed
            client = MlflowClient(config.uri.replace(f"///{file}", f"///{file.absolute()}", 1))
            client.search_experiments(max_results=1)
    except OSError as error:
        raise UserError(f"tracking.uri '{config.uri}' cannot be opened: {error}.") from error
    return client


def find_or_create_run(
    client: MlflowClient, config: TrackingConfig, *, name: str, fit_id: str, run_id: str | None
) -> tuple[str, bool]:
    """Return the fit's run, found by its id or its fit's tag or created, and whether it was there.

    Raises:
        UserError: the experiment or the run is deleted, or the store does not have the run.
    """
    from mlflow.exceptions import MlflowException

    if run_id is None:
        experiment = _experiment(client, config)
        runs = client.search_runs([experiment], f"tags.`{FIT_TAG}` = '{fit_id}'", max_results=1)
        if runs:
            return runs[0].info.run_id, True
        return client.create_run(experiment, run_name=name, tags={FIT_TAG: fit_id}).info.run_id, False
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise UserError(
            f"MLflow cannot open run {run_id} at tracking.uri '{redact(config.uri)}': {redact(error.message)}. "
            "Give the store the run was started with, or start anew with another name=."
        ) from error
    if run.info.lifecycle_stage == "deleted":
        raise UserError(
            f"the MLflow run {run_id} at tracking.uri '{redact(config.uri)}' is deleted; start anew with another "
            f"name=, or restore it with: {mlflow_on(config.uri, 'runs', 'restore', '--run-id', run_id)}"
        )
    return run_id, True


def refusal(error: Exception, config: TrackingConfig) -> UserError | None:
    """The user's mistake behind an error of a store that answered; None when the store did not answer."""
    if isinstance(error, UserError):
        return error
    if getattr(error, "error_code", None) in REFUSALS:
        return UserError(f"MLflow refuses at tracking.uri '{redact(config.uri)}': {redact(str(error))}.")
    return None


def is_invalid(error: Exception) -> bool:
    """Whether the store answered that what it was sent is none of its values; sending it again changes nothing."""
    return getattr(error, "error_code", None) == INVALID


def _experiment(client: MlflowClient, config: TrackingConfig) -> str:
    """The experiment's id; a new one keeps its artifacts where the config says."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is None:
        local = is_local(config) and config.artifact_location is not None
        location = Path(str(config.artifact_location)).resolve().as_uri() if local else None
        tags = {**KIND, STORE_TAG: str(database(config).resolve())} if is_local(config) else KIND
        try:
            return str(client.create_experiment(config.experiment, artifact_location=location, tags=tags))
        except MlflowException:
            experiment = client.get_experiment_by_name(config.experiment)  # another fit was faster
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise UserError(deleted_experiment(config, str(experiment.experiment_id)))
    if is_local(config) and STORE_TAG not in experiment.tags:  # made by a version that did not record it
        client.set_experiment_tag(experiment.experiment_id, STORE_TAG, str(database(config).resolve()))
    return str(experiment.experiment_id)


def check_experiment(config: TrackingConfig) -> None:
    """Check, before hours of work whose results go there, that the store can be opened and takes runs.

    A server that does not answer is waited for later.

    Raises:
        UserError: the store cannot be opened, its experiment is deleted, or it has no registry and is to register.
    """
    from mlflow.exceptions import MlflowException

    client = connect(config)
    try:
        experiment = client.get_experiment_by_name(config.experiment)
        check_registry(client, config)
    except (MlflowException, OSError) as error:  # requests' own errors are OSErrors
        mistake = refusal(error, config)
        if mistake is not None:
            raise mistake from error
        return
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        raise UserError(deleted_experiment(config, str(experiment.experiment_id)))


def deleted_experiment(config: TrackingConfig, experiment_id: str) -> str:
    """What is wrong, and the ways out."""
    command = mlflow_on(config.uri, "experiments", "restore", "--experiment-id", experiment_id)
    return (
        f"tracking.experiment: '{config.experiment}' is deleted at tracking.uri '{redact(config.uri)}'; set another "
        f"tracking.experiment, or restore it with: {command}"
    )


def _create_database(file: Path) -> None:
    """Make the tables beside `file`, then give it its name: MLflow cannot go on with half of them."""
    from mlflow.tracking import MlflowClient

    unfinished = file.absolute().with_name(f".{file.name}.new")
    unfinished.unlink(missing_ok=True)
    MlflowClient(f"sqlite:///{unfinished}").search_experiments(max_results=1)
    os.replace(unfinished, file)


def _check_database(file: Path) -> None:
    """Raise DamagedDatabaseError before MLflow meets a broken file, which it would retry for minutes."""
    try:
        # read and write: what a kill left of a transaction is rolled back by whoever opens the file first
        with closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=rw", uri=True)) as connection:
            ((verdict, *_),) = connection.execute("PRAGMA quick_check(1)").fetchall()
    except sqlite3.OperationalError:
        raise  # locked or not readable now
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise DamagedDatabaseError(
            f"{file} (tracking.uri) is not a usable SQLite database: {verdict}. "
            "Move it away, so that a new one is made there, or set another tracking.uri."
        )
