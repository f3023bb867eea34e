"""A saved view for MLflow's page of runs, with the columns that compare the runs of a study; and a run's description.

MLflow 3 keeps a shared view as a tag of the experiment: JSON of the state of its page, which opens with the tag's key.
A run's description is a tag as well, in Markdown.

    python -m boxtwin.tracking.mlflow_view mlruns 5000     prints the address of the newest study, for `make ui`
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from mlflow.tracking import MlflowClient

from boxtwin.command_line import command_line, setting
from boxtwin.errors import InputError
from boxtwin.tracking.mlflow_runs import TRAINING_RUNS, Store

KEY = "boxtwin"
COLUMNS = [
    *(f"params.`{name}`" for name in ("split", "variations", "generator", "seed")),
    *(f"metrics.`test/{name}`" for name in ("map_50", "map", "count_mae", "count_bias")),
]
STATE = {
    # Runs that train, not comparisons.
    "searchFilter": TRAINING_RUNS,
    "orderByKey": "params.`split`",
    "orderByAsc": True,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "modelVersionFilter": "All Runs",
    "datasetsFilter": [],
    "selectedColumns": COLUMNS,
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
    """The description of a finished run: the file ``detector`` in its folder ``output``, and how to export it."""
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


def address(folder: Path, port: int) -> str:
    """The address of the saved view of the study with the newest run, or of the list of experiments if there is none.

    Opens the store in ``folder``, which creates missing tables and updates the addresses of a moved folder.
    """
    store = Store(uri=None, folder=folder)
    studies = store.studies()
    page = save_view(store.client, studies[0].experiment_id) if studies else "/#/experiments"
    return f"http://127.0.0.1:{port}{page}"


if __name__ == "__main__":
    try:
        print(address(Path(sys.argv[1]), int(sys.argv[2])))
    except InputError as error:
        sys.exit(str(error))
