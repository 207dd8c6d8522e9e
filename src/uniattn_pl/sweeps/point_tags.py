"""Tags that a finished sweep gives the MLflow runs of its points: whose they are, their rank, which is the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from uniattn_pl.config.sections.tracking_section import TrackingConfig
from uniattn_pl.errors import UserError
from uniattn_pl.resilience.manifest import Manifest, exclusive
from uniattn_pl.sweeps.view import ViewRow, ranked
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.mlflow_run import reopened


def tag_points(config: TrackingConfig, name: str, rows: Sequence[ViewRow], tell: Callable[[str], None]) -> None:
    """Tag the runs of all finished points whose folders are here; what is tagged so already is not sent again.

    While the store does not answer the tags wait in the points' own journals.

    Args:
        name: of the sweep.
    """
    answers = True
    for rank, row in enumerate(ranked(rows), start=1):
        manifest = Manifest.read(row.folder)
        if manifest is None:
            continue  # on another machine, whose worker does it
        new = {tags.SWEEP: name, tags.RANK: str(rank), tags.BEST: "true" if rank == 1 else "false"}
        try:
            with (
                exclusive(row.folder),
                reopened(
                    config,
                    row.folder,
                    name=row.name,
                    fit_id=manifest.fit_id,
                    run_id=manifest.mlflow_run_id,
                    tell=tell,
                    deliver=answers,
                ) as run,
            ):
                for key, value in new.items():
                    run.set_tag(key, value)
        except UserError as error:  # another process works there, or the run is deleted
            tell(f"{row.name} is not tagged in MLflow: {error}")
            continue
        answers = answers and not run.pending
