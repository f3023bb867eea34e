"""How the process keeps memory that it frees, and how much is left. It imports no torch: comparing runs needs none."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # mallopt's parameters, from glibc's malloc.h
LARGEST_BLOCK = 2**30  # bytes; the largest feature map of a batch is well below
MOST_KEPT = 2**31 - 1  # bytes: the largest value that fits mallopt's int


def keep_freed_blocks() -> bool:
    """Let the process keep large blocks of memory that it frees; returns whether that could be set.

    glibc returns blocks above 32 MB to the system at once, and a training step on a CPU frees and takes the memory of
    every feature map. Clearing each page anew can take a quarter of a step. Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))


def free_memory(system: Path = Path("/")) -> float:
    """Bytes that new processes can take of the machine and of the limit of a container (cgroup v2); inf if unknown.

    ``system`` is the folder that holds ``proc`` and ``sys``. Without them, as on macOS, half of the machine's memory.
    """
    limits = []
    try:
        lines = dict(line.split(":") for line in (system / "proc/meminfo").read_text().splitlines())
        limits.append(1024.0 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(getattr(os, "sysconf_names", {})):
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2)
    group = system / "sys/fs/cgroup"
    with contextlib.suppress(OSError, ValueError):  # "max" means no limit
        limits.append(float(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())))
    return max(min(limits, default=math.inf), 0.0)
