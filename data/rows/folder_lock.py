"""One process at a time writes into a folder that several jobs share."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def locked(file: Path) -> Iterator[bool]:
    """Wait until no other process has the lock, and take it; it is lost as the process ends.

    Yields whether there is a lock: some file systems in a network know none, which is logged.

    Raises:
        OSError: the file cannot be written.
    """
    # Not `flock`: processes that are forked would hold it longer than their parent lives.
    with file.open("a") as handle:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            log.info("%s: another job is at work in this folder; waiting until it is done", file)
            fcntl.lockf(handle, fcntl.LOCK_EX)
        except OSError as error:
            log.warning(
                "%s: no lock here (%s); start no other job on this folder until this one has "
                "unpacked or fetched its files",
                file,
                error,
            )
            yield False
            return
        yield True
