"""What the engines of a job have answered, by node: written by each actor as it answers."""

from collections import defaultdict
from pathlib import Path

ANSWERED = "answered"
SITE = f"""
import importlib.abc, importlib.util, os, sys
METHODS = {{
    "reward.engines.embedder_actor": ("EmbedderActor", "embed"),
    "rollout.actor": ("RolloutActor", "generate"),
}}
class Counts(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in METHODS:
            return None
        owner, method = METHODS.pop(name)
        spec = importlib.util.find_spec(name)
        run_module = spec.loader.exec_module
        def exec_module(module):
            run_module(module)
            cls = getattr(module, owner)
            ask = getattr(cls, method)
            async def counted(self, requests, *pictures):
                answer = await ask(self, requests, *pictures)
                with open(os.path.join(os.path.dirname(__file__), "{ANSWERED}"), "a") as file:
                    file.write("".join(f"{{os.getppid()}} {{r.key}}\\n" for r in requests))
                return answer
            setattr(cls, method, counted)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Counts())
"""
"""A `sitecustomize`, which Python runs at the start of every process whose path has its folder."""


def write_site(folder: Path) -> Path:
    """Make the folder that a job's processes need on their path; return it."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    return folder


def answered_requests(folder: Path) -> dict[int, list[str]]:
    """Return the keys of the requests that engines have answered, by the process id of the Ray node
    that started the actor."""
    keys: dict[int, list[str]] = defaultdict(list)
    for line in (folder / ANSWERED).read_text().splitlines():
        node, key = line.split(" ", 1)
        keys[int(node)].append(key)
    return keys
