"""What is done where most pictures of a step cannot be read: wait, try again, end the run."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from data.errors import NothingToTrainOn

T = TypeVar("T")
log = logging.getLogger(__name__)
PAUSES_S = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Before each further try: a mount that comes back within two minutes costs no step."""
FEW = 8
"""Fewer failed pictures may be broken ones that met by chance; an empty step is counted then."""
SHOWN_REASONS = 3


def read_patiently(
    uris: Collection[str],
    read: Callable[[Collection[str]], tuple[T, Mapping[str, str]]],
    wait: Callable[[float], object],
) -> tuple[T, Mapping[str, str]]:
    """Return what ``read`` returns of these files: what it read, and by file why it could not.

    Where most files, and more than a few, fail, it is called again after a pause, for which
    ``wait`` is called with the seconds; it may raise to end this.

    Raises:
        NothingToTrainOn: they failed at every try.
    """
    for pause in (*PAUSES_S, None):
        pictures, failed = read(uris)
        if len(failed) < FEW or 2 * len(failed) < len(uris):
            return pictures, failed
        reasons = "; ".join(list(failed.values())[:SHOWN_REASONS])
        what = f"{len(failed)} of {len(uris)} pictures could not be read ({reasons})"
        if pause is not None:
            log.warning("%s; tried again in %g s", what, pause)
            wait(pause)
    raise NothingToTrainOn(
        f"{what}; tried {len(PAUSES_S) + 1} times in {sum(PAUSES_S):.0f} s: see that the folders "
        "in data are there and can be read on the driver's node; then the same command goes on "
        "from the last checkpoint"
    )
