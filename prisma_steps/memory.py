"""What the allocator does with the memory of large temporaries."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import contextmanager

#: Names of glibc's malloc.h, the sizes up to which memory is kept, and those that glibc itself goes up to.
_THRESHOLDS = {"M_MMAP_THRESHOLD": (-3, 2**30, 2**25), "M_TRIM_THRESHOLD": (-1, 2**31 - 1, 2**26)}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Keep freed memory for the next temporary while it lasts, and give it back at the end.

    For the main thread: the memory of other threads lies in pieces too small for large
    temporaries. It changes no result. Without glibc there is nothing to set.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for option, kept, _ in _THRESHOLDS.values():
        libc.mallopt(option, kept)
    try:
        yield
    finally:
        for option, _, usual in _THRESHOLDS.values():
            libc.mallopt(option, usual)
        libc.malloc_trim(0)
