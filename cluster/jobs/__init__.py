"""The jobs. From a job's first line on, signals end it with the exit code of a stopped one."""

import sys

from cluster.run.stopping import take_over

# What `python -m cluster.jobs.NAME` imports first, with this in the place of a file's name.
if sys.argv[0] == "-m":
    take_over()
