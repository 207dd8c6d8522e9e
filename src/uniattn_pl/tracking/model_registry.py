"""MLflow's model registry: whether a store has one, and a version of a name for each finished fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.redaction import redact

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.tracking import MlflowClient

# what a store answers that has no registry, or none for this user; other errors pass
NO_REGISTRY = {"FEATURE_DISABLED", "NOT_IMPLEMENTED", "ENDPOINT_NOT_FOUND", "PERMISSION_DENIED"}
VERSIONS = "mlflow.modelVersions"  # MLflow's tag of a logged model: the versions that are it


def check_registry(client: MlflowClient, config: TrackingConfig) -> None:
    """Check that a store that answers has a registry, where a fit is to be registered.

    Raises:
        UserError: it has none, or does not let this user read it.
    """
    from mlflow.exceptions import MlflowException

    if config.register_as is None:
        return
    client.get_experiment_by_name(config.experiment)  # a proxy before a dead server says ENDPOINT_NOT_FOUND, too
    try:
        client.search_registered_models(max_results=1)
    except MlflowException as error:
        if error.error_code not in NO_REGISTRY:
            raise
        raise UserError(
            f"tracking.register_as: the store at tracking.uri '{redact(config.uri)}' has no model registry for you "
            f"({redact(error.message)}); set it to null, or tracking.uri to a database or an MLflow server."
        ) from error


def register(client: MlflowClient, name: str, model: LoggedModel, *, tags: Mapping[str, str], note: str) -> None:
    """Make a logged model the newest version of a registered one, or give the version that it is its present tags.

    Args:
        name: of the registered model, which is made where it is not there.
        tags, note: of the version.
    """
    from mlflow.exceptions import MlflowException

    run_id = model.source_run_id
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    versions = [version for version in client.search_model_versions(f"run_id = '{run_id}'") if version.name == name]
    if not versions:
        # not as models:/ID, which a database's registry looks for in the store that is MLflow's default in this process
        where = {"run_id": run_id, "model_id": model.model_id}
        created = client.create_model_version(
            name, model.artifact_location, **where, tags=dict(tags), description=note, await_creation_for=0
        )
        versions = [created]
    version = versions[0]
    for key, value in tags.items():
        if version.tags.get(key) != value:  # of a model that was moved
            client.set_model_version_tag(name, version.version, key, value)
    known = json.loads(client.get_logged_model(model.model_id).tags.get(VERSIONS, "[]"))
    entry = {"name": name, "version": int(version.version)}
    if not any(one["name"] == name and int(one["version"]) == entry["version"] for one in known):
        known.append(entry)
        client.set_logged_model_tags(model.model_id, {VERSIONS: json.dumps(known)})
