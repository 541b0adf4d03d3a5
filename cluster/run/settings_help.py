"""What `--help` of a job prints: every setting, then usage and options.

It loads nothing heavy: the package `cluster.jobs` prints it before the job itself is imported.
"""

import argparse
import ast
import inspect
import json
import shutil
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from configs.common import MISSING
from configs.presets import PRESETS
from configs.schema import (
    CheckDataConfig,
    DemoDataConfig,
    EmbedderConfig,
    EncodeConfig,
    EvaluateConfig,
    ReportConfig,
    RLConfig,
    RuleTracesConfig,
    SearchConfig,
    ServeConfig,
    WarmStartConfig,
)

JOBS: dict[str, type] = {
    "demo_data": DemoDataConfig,
    "check_data": CheckDataConfig,
    "rule_traces": RuleTracesConfig,
    "warm_start": WarmStartConfig,
    "embedder": EmbedderConfig,
    "rl": RLConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "encode": EncodeConfig,
    "search": SearchConfig,
    "serve": ServeConfig,
}
"""The settings of each job that has settings."""
MAX_WIDTH = 100


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of a job's settings, or a section of keys."""

    key: str
    """Dotted; `data.train[].name` is a key of each entry of the list `data.train`."""
    kind: str
    """Type and default, or that a value is required; empty for a section."""
    meaning: str


class JobParser(argparse.ArgumentParser):
    """A job's command line, whose help begins with the job's settings."""

    def __init__(self, cls: type) -> None:
        job = next(name for name, config in JOBS.items() if config is cls)
        super().__init__(prog=f"python -m cluster.jobs.{job}", description=inspect.getdoc(cls))
        self._cls = cls
        self.add_argument("config", help="YAML file under configs/")
        self.add_argument(
            "overrides",
            nargs="*",
            metavar="section.key=value",
            help="settings that win over those of the file, or a further YAML file of them",
        )
        self.add_argument(
            "--dry-run",
            action="store_true",
            help="print settings, plan and data, look at rows, pictures and models; start nothing",
        )

    def format_help(self) -> str:
        """Return the settings, then usage and options."""
        width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
        return f"{format_settings(self._cls, width=width)}\n{super().format_help()}"


def print_help(module: str) -> None:
    """Print the help of the job that ``-m`` names, and end the process with 0.

    Return if the module has no settings here; such a module prints its own help.
    """
    cls = JOBS.get(module.rpartition(".")[2])
    if cls is not None:
        JobParser(cls).print_help()
        sys.exit(0)


def format_settings(cls: type, *, width: int) -> str:
    """Return a job's settings as text: key, type and default, and below them the meaning."""
    settings = list(settings_of(cls))
    lines = []
    for setting in settings:
        head = f"{setting.key}: {setting.kind}" if setting.kind else setting.key
        lines += _wrapped(head, width, first="", rest=" " * 8)
        for paragraph in setting.meaning.split("\n\n"):
            lines += _wrapped(paragraph, width, first=" " * 4, rest=" " * 4)
    keys = {setting.key for setting in settings}
    presets = [key for section in PRESETS if (key := f"{section}.preset") in keys]
    if presets:
        text = f"Presets, which set many keys of their section at once: {', '.join(presets)}."
        lines += ["", *_wrapped(text, width, first="", rest="")]
    return "\n".join(["settings:", *lines, ""])


def settings_of(cls: type, prefix: str = "") -> Iterator[Setting]:
    """Yield all keys of a settings dataclass in order, each section before its keys.

    A section without a docstring gets no line of its own; its keys are listed.
    """
    types, meanings = get_type_hints(cls), _meanings(cls.__module__)
    for field in fields(cls):
        key, kind = prefix + field.name, types[field.name]
        meaning = meanings[cls.__name__].get(field.name, "")
        if is_dataclass(kind):
            meaning = meaning or _meanings(kind.__module__)[kind.__name__][""]
            if meaning:
                yield Setting(f"{key}.*", "", meaning)
            yield from settings_of(kind, f"{key}.")
            continue
        yield Setting(key, _type_and_default(kind, field), meaning)
        for entry in filter(is_dataclass, get_args(kind)):
            yield from settings_of(entry, f"{key}[].")


def _type_and_default(kind: Any, field: Field[Any]) -> str:
    factory = field.default_factory
    default = field.default if factory is NO_DEFAULT else factory()
    return f"{_type_name(kind)}{', required' if default == MISSING else f' = {_yaml(default)}'}"


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " | ".join(map(_yaml, get_args(kind)))
    if get_origin(kind) is list:
        (entry,) = get_args(kind)
        return f"list of {'sections' if is_dataclass(entry) else entry.__name__}"
    return str(kind.__name__)


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


@cache
def _meanings(module: str) -> dict[str, dict[str, str]]:
    """Return the docstrings of a module's classes, by class and field; a class's own under ''."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {
        node.name: {"": ast.get_docstring(node) or "", **_under_fields(node)}
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }


def _under_fields(node: ast.ClassDef) -> dict[str, str]:
    """Return the docstrings under the fields of a class; Python itself does not keep them."""
    meanings = {}
    for above, below in pairwise(node.body):
        match above, below:
            case (
                ast.AnnAssign(target=ast.Name(id=name)),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                meanings[name] = inspect.cleandoc(text)
    return meanings


def _wrapped(text: str, width: int, *, first: str, rest: str) -> list[str]:
    return textwrap.wrap(
        " ".join(text.split()),
        width,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
