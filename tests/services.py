"""Services that tests start on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def wait_for(what: Callable[[], Answer], seconds: float = 120) -> Answer:
    """The first true value of ``what``."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"nothing came in {seconds} seconds"
        time.sleep(0.3)
    return found
