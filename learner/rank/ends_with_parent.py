"""Importing this lets each process that is forked from here on end when its parent does.

DeepSpeed's conversion works in a pool of processes, which would wait for ever for work from a
parent that was killed.
"""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
"""Of Linux: names the signal that the kernel sends to a process whose parent has died."""
_libc = ctypes.CDLL(None)
_forking: list[int] = []
"""The last process that began to fork."""


def _end_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != _forking[-1]:  # it was killed before the kernel knew
        os.kill(os.getpid(), signal.SIGKILL)


os.register_at_fork(before=lambda: _forking.append(os.getpid()), after_in_child=_end_with_parent)
