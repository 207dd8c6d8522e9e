"""Which MLflow run a benchmark or an analysis is shown under: the fit's or the sweep's whose folder it works in."""

from __future__ import annotations

from pathlib import Path

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.run_folder import SWEEP_ENTRY
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.delivery_state import FILE, DeliveryState
from uniattn_pl.tracking.journal import FOLDER
from uniattn_pl.tracking.lost_run import is_in_store, is_lost


def parent_tag(config: TrackingConfig, folder: Path) -> dict[str, str]:
    """The tag that puts a run below that of a run folder; none where nothing was fitted there or its run is gone.

    Args:
        config: the store, in which the run above has to be.
        folder: the run folder of a fit or of a sweep.

    Raises:
        UserError: the URI is not a store's, or the sqlite file is damaged.
    """
    for place in (folder, folder / SWEEP_ENTRY):
        delivered = DeliveryState.read(place / FOLDER / FILE)
        run_id = None if delivered is None else delivered.run_id
        if run_id is not None and is_in_store(config, place) and is_lost(config, place, run_id) is False:
            return {tags.PARENT: run_id}
    return {}
