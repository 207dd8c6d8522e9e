"""What variables of the environment say, below every file: MLflow's own for the store."""

from __future__ import annotations

import os

from uniattn_pl.config.yaml_documents import Entry, Layer

STORE, STORE_VARIABLE = ("tracking", "uri"), "MLFLOW_TRACKING_URI"


def environment_layer() -> Layer:
    """The values that the environment gives to keys which nobody sets otherwise."""
    uri = os.environ.get(STORE_VARIABLE)
    return Layer((Entry(STORE, (f"${STORE_VARIABLE}",) * len(STORE), uri, uri),) if uri else ())
