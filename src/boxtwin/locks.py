"""One process at a time: locks that say what they wait for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def alone(file: Path, waiting: str) -> Iterator[None]:
    """Hold the lock ``file`` inside of the block; its folder is made if it is missing.

    If another process holds it, the line ``waiting`` is logged, and the block begins when that one is done or dead.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
