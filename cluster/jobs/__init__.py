"""The jobs. From a job's first line on, signals end it with the exit code of a stopped job."""

import sys

from cluster.run.stopping import take_over

# What `python -m cluster.jobs.NAME` imports first, with this in the place of a file's name.
if sys.argv[0] == "-m":
    take_over()
    if not {"-h", "--help"}.isdisjoint(sys.argv[1:]):
        from cluster.run.settings_help import print_help

        # Now, as the job's own imports take seconds. Its name stands before its arguments.
        print_help(sys.orig_argv[-len(sys.argv)])
