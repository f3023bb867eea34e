"""A saved view for MLflow's own page of runs: the cells of a study with the columns that compare them.

MLflow keeps a view that is shared by its page as a tag of the experiment, JSON of the page's state, and shows it to
whoever opens the page with its key. (MLflow 3; an older page finds nothing under the key and shows its own columns.)
"""

from __future__ import annotations

import json

from mlflow.tracking import MlflowClient

KEY = "boxtwin"
COLUMNS = (
    "params.`split`",
    "params.`variations`",
    "params.`generator`",
    "params.`seed`",
    "metrics.`test/map_50`",
    "metrics.`test/map`",
    "metrics.`test/count_mae`",
    "metrics.`test/count_bias`",
)
STATE = {
    # What is searched for: runs of cells, not of comparisons.
    "searchFilter": "tags.`boxtwin.kind` = 'cell'",
    "orderByKey": "params.`split`",
    "orderByAsc": True,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
    # How it is shown.
    "selectedColumns": list(COLUMNS),
    "runsPinned": [],
    "runsExpanded": {},
    "runsHidden": [],
    "runListHidden": False,
    "viewMaximized": False,
    "compareRunCharts": [],
    "compareRunSections": [],
}


def save_view(client: MlflowClient, experiment_id: str) -> str:
    """Save the view with an experiment; returns its address below that of the server."""
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{KEY}", json.dumps(STATE))
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}"
