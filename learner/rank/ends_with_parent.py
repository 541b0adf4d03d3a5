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

os.register_at_fork(after_in_child=lambda: _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL))
