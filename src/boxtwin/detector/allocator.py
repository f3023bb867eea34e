"""How the process gets the memory of feature maps."""

from __future__ import annotations

import ctypes

# mallopt's parameters, from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST_BLOCK = 2**30  # bytes; the largest feature map of a batch is well below
MOST_KEPT = 2**31 - 1  # bytes: the largest value that fits mallopt's int


def keep_freed_blocks() -> bool:
    """Let large blocks of memory that are freed wait in the process for their next use; says if that could be set.

    glibc hands blocks above 32 MB back to the system at once, and a training step on a CPU frees and takes the memory
    of every feature map anew. The system clears each page that it gives, which can take a quarter of a step. Set so,
    the process keeps what it needed at its peak. Other C libraries have no such setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and mallopt(M_TRIM_THRESHOLD, MOST_KEPT))
