"""Ends an engine's processes with the actor that started them, however that one ended.

vLLM stops its processes when it is told to. Where their actor is killed nobody tells them, and they
would go on holding their memory, on a GPU all of it, beside the engine that takes their place.

Importing this module in a process of an engine begins the watch: vLLM imports the class below there
before it loads a model, and no later moment would reach an engine whose actor dies meanwhile.
"""

import os
import threading
import time

import psutil

ACTOR_PID = "EMBED_RL_ACTOR_PID"
"""Environment variable that an actor hands down to what it starts."""
LOOK_S = 1.0


class EndsWithActor:
    """Extension of vLLM's worker class."""


def watch(actor: int) -> None:
    """Kill this process, and the one between it and the actor, once the actor is gone."""
    between = psutil.Process(os.getppid())
    try:
        starter = psutil.Process(actor)
        while starter.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_S)
            if not starter.is_running():
                break
    except psutil.NoSuchProcess:
        pass  # it is gone already, which is what was waited for
    if between.pid not in (actor, 1) and between.is_running():
        between.kill()
    psutil.Process().kill()


if (_actor := int(os.environ.get(ACTOR_PID, "0"))) and _actor != os.getpid():
    threading.Thread(target=watch, args=(_actor,), name="lifeline", daemon=True).start()
