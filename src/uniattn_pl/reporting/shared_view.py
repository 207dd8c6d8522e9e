"""A view of MLflow's pages that a link opens: the runs of a report, their final loss over what they cost first.

MLflow keeps a view as a tag of the experiment, in the form of its `Share` button.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from uniattn_pl.redaction import redact
from uniattn_pl.reporting.tracked_runs import RunStore
from uniattn_pl.tracking import tags
from uniattn_pl.tracking.metric_names import FINAL_LOSS, RETAIN_RATE

TAG = "mlflow.sharedViewState."
CURVES = ("val/response_loss", "stage2/loss", "stage1/loss")
OVER_COST, TRAINING = "Loss over cost", "Loss while it trains"


def share_view(runs: RunStore, name: str, run_ids: Sequence[str]) -> str | None:
    """Store the view of these runs, in place of an earlier one of that name; returns its key, None where it cannot be.

    Args:
        name: of the report.
    """
    from mlflow.exceptions import MlflowException

    key, state = f"uniattn_pl-{hashlib.sha256(name.encode()).hexdigest()[:12]}", json.dumps(view_state(run_ids))
    if len(state) > tags.LONGEST:
        return None
    try:
        runs.client.set_experiment_tag(runs.experiment_id, TAG + key, state)
    except (MlflowException, OSError) as error:
        print(f"the view of its runs is not in MLflow, which does not take it: {redact(str(error))}")
        return None
    return key


def view_state(run_ids: Sequence[str]) -> dict[str, Any]:
    """What MLflow's pages show of these runs: the best first, charts of final loss over cost and of training."""
    of_cost = {"type": "SCATTER", "xaxis": _metric(RETAIN_RATE), "yaxis": _metric(FINAL_LOSS)}
    curves = [{"type": "LINE", "metricKey": key} for key in CURVES]
    charts = [_chart(of_cost, 0, OVER_COST), *(_chart(curve, n, TRAINING) for n, curve in enumerate(curves, start=1))]
    named = ", ".join(f"'{run_id}'" for run_id in run_ids)
    return {
        "searchFilter": f"attributes.run_id IN ({named})",
        "orderByKey": f"metrics.`{FINAL_LOSS}`",
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [_section(OVER_COST, columns=1), _section(TRAINING, columns=3)],
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
        "isAccordionReordered": True,  # else sections come by their names
    }


def _metric(key: str) -> dict[str, str]:
    return {"key": key, "type": "METRIC"}


def _chart(chart: dict[str, Any], number: int, section: str) -> dict[str, Any]:
    of_all = {"runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return {"uuid": f"chart-{number}", "metricSectionId": section, **of_all, **chart}


def _section(name: str, *, columns: int) -> dict[str, Any]:
    return {
        "uuid": name,
        "name": name,
        "columns": columns,
        "display": True,
        "isReordered": True,
        "deleted": False,
        "isGenerated": False,
    }
