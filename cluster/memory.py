"""What a driver's memory costs: how often it is searched for cycles, and when it is given back."""

import ctypes
import gc

YOUNG_OBJECTS = 500_000
"""New ones that are waited for. A step makes some hundred thousand, and lets go of them itself."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""From glibc's malloc.h."""
KEPT_BYTES = 1 << 30
"""Of freed memory that is used again: the kernel clears each page that it gives, and a round's
similarities are hundreds of megabytes of new pages, every step."""


def spare_memory_work() -> None:
    """Leave what exists now out of all later searches, search more rarely, and keep freed memory.

    For a driver that is set up: the libraries' million objects stay to the end, and every full
    search would visit them. With another C library than glibc no memory is kept.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in (
            (M_ARENA_MAX, 1),
            (M_MMAP_THRESHOLD, KEPT_BYTES),
            (M_TRIM_THRESHOLD, KEPT_BYTES),
        ):
            mallopt(option, value)
