"""A saved view for MLflow's own page of runs: the runs of a study with the columns that compare them.

MLflow keeps a view that is shared by its page as a tag of the experiment, JSON of the page's state, and shows it to
whoever opens the page with its key. (MLflow 3; an older page finds nothing under the key and shows its own columns.)
A run's description, which its page shows above all else, is a tag as well, in Markdown.
"""

from __future__ import annotations

import json
import re

from mlflow.tracking import MlflowClient

from boxtwin.command_line import command_line, setting
from boxtwin.tracking.mlflow_runs import TRAINING_RUNS

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
    # What is searched for: runs that train, not comparisons.
    "searchFilter": TRAINING_RUNS,
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


NOTE_TAG = "mlflow.note.content"


def note(output: str, detector: str) -> str:
    """The description of a finished run: where its detector is, and the command that exports it.

    Args:
        output: folder of the run, relative to the project's folder or absolute.
        detector: name of the detector's file there.
    """
    command = command_line("export.py", [setting("run", output)])
    # A fence longer than any in the text, so that the name of a folder cannot end it.
    fence = "`" * max(3, *(len(ticks) + 1 for ticks in ["", *re.findall("`+", command)]))
    # Short: the page folds away what follows the first lines.
    return (
        "The detector and the command that exports it (ONNX, MLflow model), in the project's folder:\n"
        f"{fence}\n{output}/{detector}\n{command}\n{fence}\n"
    )


def save_view(client: MlflowClient, experiment_id: str) -> str:
    """Save the view with an experiment; returns its address below that of the server."""
    client.set_experiment_tag(experiment_id, f"mlflow.sharedViewState.{KEY}", json.dumps(STATE))
    return f"/#/experiments/{experiment_id}/runs?viewStateShareKey={KEY}"
