"""Files that outlast a power cut: the disk holds them before they get the name that counts."""

import errno
import os
from pathlib import Path

NOT_OFFERED = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems answer that cannot write out a folder by itself."""
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
"""What a full disk and a used-up quota answer."""


def sync_tree(folder: Path) -> None:
    """Wait until the disk holds a folder with all that is in it.

    Raises:
        OSError: it does not: it is full, or broken.
    """
    for path in (folder, *folder.rglob("*")):
        if not path.is_symlink():
            sync(path)


def sync(path: Path) -> None:
    """Wait until the disk holds a file's content, or a folder's names.

    Raises:
        OSError: it does not: it is full, or broken.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if not (path.is_dir() and error.errno in NOT_OFFERED):
            raise
    finally:
        os.close(handle)
