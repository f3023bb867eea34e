"""Which studies an MLflow store has: the last one, and names that are checked before anything slow is imported.

The last study, which commands take if none is named, is the one of which a run was started last, whatever its state.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing, suppress
from pathlib import Path

from boxtwin.command_line import command_line, setting
from boxtwin.datasets.problems import some
from boxtwin.errors import InputError, nearest
from boxtwin.files import check_name

STUDIES = Path("multirun")  # folder of the studies' folders, whose folders are runs
SHOWN = 3  # studies in an error
MAKE_SOME = "make some: python train.py -m split=s1,s2 variations=0,2,10"
DATABASE = "mlflow.db"  # in the store's folder
SQLITE = "sqlite:///"  # how the address of such a file begins
IDENTITY_TAG = "boxtwin.identity"  # of runs that train, and of no others
_STUDIES = """
    select experiments.name from experiments join runs using (experiment_id) join tags using (run_uuid)
    where tags.key = ? and experiments.lifecycle_stage = 'active' and runs.lifecycle_stage = 'active'
    group by experiments.name order by max(runs.start_time) desc
"""


def study_names(uri: str | None, folder: Path) -> list[str]:
    """All studies with runs in the store of a server, or for None in a folder; the last one comes first.

    As `Store.studies` gives them; MLflow, which takes seconds to import, is asked for those of a server alone.
    """
    if uri is None:
        if not (folder / DATABASE).is_file():
            return []
        # A file that cannot be read goes on to MLflow, which says what is wrong with it.
        with suppress(sqlite3.Error), closing(sqlite3.connect(folder / DATABASE)) as connection:
            return [name for (name,) in connection.execute(_STUDIES, [IDENTITY_TAG])]
    from boxtwin.tracking.mlflow_runs import Store

    return [experiment.name for experiment in Store(uri=uri, folder=folder).studies()]


def find_study(asked: str | None, uri: str | None, folder: Path) -> str:
    """The study of a name, or for None the last one; raises `InputError` if the store has no runs of it."""
    check_name(asked, "study")
    names, place = study_names(uri, folder), uri or folder
    if not names:
        raise InputError(f"there are no runs in {place}; {_runs_in_folders() or MAKE_SOME}")
    if asked is None:
        return names[0]
    if asked not in names:
        hint = nearest(asked, names) or f"; studies there: {some(names, 10)}"
        raise InputError(f"no runs of a study called {asked} in {place}{hint}")
    return asked


def _runs_in_folders() -> str:
    """What to do with finished runs that lie in folders, where the store is gone."""
    studies = sorted({path.parents[1].name for path in STUDIES.glob("*/*/result.json")})
    commands = [command_line("compare.py", [setting("runs", str(STUDIES / name))]) for name in studies[:SHOWN]]
    return f"finished runs lie in folders: {' or '.join(commands)}" if commands else ""
