"""What a run of `make gpu` found, as a section of benchmarks.md."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTRO = """# Benchmarks

Written by `make gpu` (`tests/gpu/`): one section per machine, replaced by its next run there.
"""


@dataclass(slots=True)
class Results:
    """One section, filled part by part."""

    machine: str
    facts: list[str]
    """Date, command, versions."""
    lacked: list[str] = field(default_factory=list)
    """What the machine does not have, or what failed, and what was not measured for it."""
    failed: bool = False
    """A part broke, or found something wrong."""
    tables: list[str] = field(default_factory=list)

    def add(self, title: str, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Append a table; numbers get three significant digits, None is a dash."""
        lines = [f"### {title}", "", _row(header), _row(["---"] * len(header))]
        lines += [_row([_text(cell) for cell in row]) for row in rows]
        self.tables.append("\n".join(lines))

    def section(self) -> str:
        """Return the section's text."""
        lacked = self.lacked or ["nothing"]
        facts = [*self.facts, *(f"Lacked: {text}" for text in lacked)]
        head = f"## {self.machine}\n\n" + "\n".join(f"- {fact}" for fact in facts)
        return "\n\n".join([head, *self.tables]) + "\n"


def write(path: Path, results: Results) -> None:
    """Put the section into the file, in the place of the same machine's older one."""
    text = path.read_text(encoding="utf-8") if path.is_file() else INTRO
    parts = re.split(r"(?m)^(?=## )", text)
    heading = f"## {results.machine}\n"
    new = results.section()
    if any(part.startswith(heading) for part in parts):
        parts = [new if part.startswith(heading) else part for part in parts]
    else:
        parts.append(new)
    partial = path.with_name(path.name + ".partial")
    partial.write_text("\n".join(part.strip("\n") + "\n" for part in parts), encoding="utf-8")
    os.replace(partial, path)


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    if not isinstance(cell, float):
        return str(cell)
    return f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.3g}"
