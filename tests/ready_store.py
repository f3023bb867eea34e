"""The tables of MLflow's stores, made once by its migrations and copied into every other new store of a test session.

The migrations take about three seconds for each new store. Processes that tests start from scratch still run them.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlflow.store.db import utils
from sqlalchemy import Engine, inspect

MIGRATE: Callable[[Engine], None] = utils._upgrade_db
READY = "BOXTWIN_TESTS_READY_STORE"  # the variable that names the file of the tables


def copy_tables() -> None:
    """Let this process copy the ready tables into new sqlite stores; the first that the migrations make are these."""
    if READY not in os.environ:  # a benchmark, which starts commands as tests do
        return
    ready = Path(os.environ[READY])

    def upgrade(engine: Engine) -> None:
        database = engine.url.database
        is_file = engine.dialect.name == "sqlite" and database != ":memory:"
        # Stores that have been made before have the table of versions.
        if not is_file or not database or inspect(engine).has_table("alembic_version"):
            MIGRATE(engine)
        elif ready.exists():
            with closing(sqlite3.connect(ready)) as source, closing(sqlite3.connect(database)) as new:
                source.backup(new)
        else:
            MIGRATE(engine)
            part = ready.with_name(uuid.uuid4().hex)
            with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(part)) as new:
                source.backup(new)
            os.replace(part, ready)  # noqa: PTH105 - whole, whichever of several processes makes it first

    utils._upgrade_db = upgrade
