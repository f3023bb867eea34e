"""Addresses of artifacts in an MLflow store on sqlite are absolute: those of a store that was moved are corrected."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

log = logging.getLogger(__name__)

ARTIFACTS = "artifacts"  # in the store's folder
# Every column of MLflow's schema that holds the address of an artifact below an experiment's.
ADDRESSES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)


def update_addresses(database: Path) -> None:
    """Update artifact addresses to the current folder of a store; the caller holds the store's lock.

    An experiment has moved if its address is ``…/artifacts/<folder>`` elsewhere and that folder exists beside
    ``database``. Other addresses, such as those on a server, stay.
    """
    here = (database.parent / ARTIFACTS).resolve()
    with closing(sqlite3.connect(database)) as connection:
        addresses = [row[0] for row in connection.execute("select artifact_location from experiments")]
        moved = {old for address in addresses if (old := _moved(address, here)) is not None}
        if not moved:
            return
        tables = {row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")}
        for old in moved:
            for table, column in (each for each in ADDRESSES if each[0] in tables):  # MLflow 2 has fewer
                connection.execute(
                    f"update {table} set {column} = ? || substr({column}, ?) where substr({column}, 1, ?) = ?",
                    (f"{here.as_uri()}/", len(old) + 1, len(old), old),
                )
            log.info("%s: artifacts are found in %s now, no longer in %s", database, here, _path(old))
        connection.commit()


def _moved(address: str | None, here: Path) -> str | None:
    """The part of an address up to its experiment's folder, where that folder lies in ``here`` now."""
    if address is None or urlsplit(address).scheme not in ("file", ""):
        return None
    root, _, folder = address.rstrip("/").rpartition("/")
    if not folder or Path(root).name != ARTIFACTS or _path(root).resolve() == here:
        return None
    return f"{root}/" if (here / unquote(folder)).is_dir() else None


def _path(address: str) -> Path:
    return Path(unquote(urlsplit(address).path))
