"""Memory: freed blocks stay with the process, so that every training step does not ask the kernel for them again.

A step allocates and frees a few hundred arrays of up to some megabytes. glibc hands blocks of that size back when they
are freed and gets them zeroed, page by page, at the next step: three thousand page faults a step and a sixth of its
time.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of the two settings in glibc's malloc.h."""

LARGEST_KEPT = 256 << 20
"""Bytes of the largest block that is kept for reuse."""


def keep_freed_memory() -> bool:
    """Tells glibc to keep blocks of up to `LARGEST_KEPT` bytes for the next allocation of their size.

    The peak of the process is the same; what it frees, other processes do not get.

    Returns:
        whether that was possible: only glibc has these settings, and other systems' allocators do not need them.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    kept = mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT) == 1
    return kept and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1
