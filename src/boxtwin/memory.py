"""How the process keeps memory that it frees. A module of its own, since comparing runs imports no torch."""

from __future__ import annotations

import ctypes

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
