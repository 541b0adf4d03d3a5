"""How often a driver's memory is searched for cycles."""

import gc

YOUNG_OBJECTS = 500_000
"""New ones that are waited for. A step makes some hundred thousand, and lets go of them itself."""


def spare_collections() -> None:
    """Leave what exists now out of all later searches, and search more rarely.

    For a driver that is set up: the libraries' million objects stay to the end, and every full
    search would visit them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
