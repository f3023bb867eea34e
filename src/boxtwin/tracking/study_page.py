"""The address at which MLflow's page shows the newest study: `make ui` prints it before it serves the store.

python -m boxtwin.tracking.study_page mlruns 5000
"""

from __future__ import annotations

import sys
from pathlib import Path

from boxtwin.errors import InputError
from boxtwin.tracking.mlflow_runs import Store
from boxtwin.tracking.mlflow_view import save_view


def address(folder: Path, port: int) -> str:
    """Of the saved view of the study with the newest run; of the list of experiments where there is none.

    Opens the store of ``folder``, which makes its tables and mends what moving the folder broke.
    """
    server = f"http://127.0.0.1:{port}"
    store = Store(uri=None, folder=folder)
    studies = store.studies()
    return server + (save_view(store.client, studies[0].experiment_id) if studies else "/#/experiments")


if __name__ == "__main__":
    try:
        print(address(Path(sys.argv[1]), int(sys.argv[2])))
    except InputError as error:
        sys.exit(str(error))
