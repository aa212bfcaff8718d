"""What a process does with memory that it has freed."""

from __future__ import annotations

import ctypes

# Parameters of mallopt(3), as glibc's malloc.h numbers them.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST, PAD = 2**31 - 1, 2**26  # bytes; the former is all that an int holds


def keep_freed_memory() -> bool:
    """Keep what large tensors leave for the next ones, instead of handing it back to the system.

    A training step on a CPU frees nearly all it has taken, and takes it again in the next. Left alone, glibc returns
    blocks of 32 MiB and more, and the end of its heap, at once; every page that comes back costs a fault and is filled
    with zeros. The process stays as large as it once was.

    Returns:
        Whether the C library does so: other ones than glibc have their own ways.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    # Blocks of over 2 GiB stay what they were. Older glibc refuses a threshold above 32 MiB and keeps its own.
    return all([mallopt(M_TRIM_THRESHOLD, LARGEST), mallopt(M_TOP_PAD, PAD), mallopt(M_MMAP_THRESHOLD, LARGEST)])
