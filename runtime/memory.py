"""The C library's allocator, told to keep what is freed for the next batch.

`lean.py` reduces what a step keeps for backward.
"""

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have glibc reuse freed memory instead of returning it to the system, which clears every page
    before handing it out again.

    Large activations come and go at every layer: without this, half of the time of inference on a
    CPU was spent on clearing pages (docs/performance.md). Peak memory grows. On systems without
    glibc nothing changes.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt:
        mallopt(M_MMAP_MAX, 0)  # none by mmap: those are returned as soon as they are freed
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # the heap is never trimmed
