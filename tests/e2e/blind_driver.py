"""A job whose driver ends at once if it decodes a picture.

Example: python -m tests.e2e.blind_driver rl configs/demo/rl.yaml
"""

import os
import runpy
import sys

from data.media import pictures

EXIT_CODE = 86


def refuse(*_: object) -> None:
    """End the process; an exception would pass for a broken picture."""
    print("the driver decodes a picture", flush=True)
    os._exit(EXIT_CODE)


if __name__ == "__main__":
    pictures._decode = refuse
    sys.argv = sys.argv[1:]
    runpy.run_module(f"cluster.jobs.{sys.argv[0]}", run_name="__main__")
