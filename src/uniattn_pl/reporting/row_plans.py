"""The plans of a report's rows, as their runs have drawn them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from uniattn_pl.reporting.report_rows import ReportRow
from uniattn_pl.reporting.tracked_runs import RunStore

PLAN = "plan.txt"  # among a fit's artifacts


def plans_of(rows: Sequence[ReportRow], runs: RunStore) -> dict[str, str]:
    """Name of a row -> its plan, drawn, where its run has kept it; a variant has its base's."""
    drawn: dict[str, str] = {}
    folder = tempfile.mkdtemp()
    try:
        for row in rows:
            run = next((member.run for member in row.members if member.run is not None), None)
            if row.variant is not None or run is None:
                continue
            if PLAN in {artifact.path for artifact in runs.client.list_artifacts(run.info.run_id)}:
                file = runs.client.download_artifacts(run.info.run_id, PLAN, folder)
                drawn[row.name] = Path(file).read_text(encoding="utf-8").rstrip()
    finally:
        shutil.rmtree(folder)
    return {row.name: drawn[row.base] for row in rows if row.base in drawn}
