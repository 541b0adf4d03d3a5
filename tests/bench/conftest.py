"""Writes what the session measured when it ends."""

from typing import Any

from tests.bench.record import RESULTS, table, write_results


def pytest_sessionfinish() -> None:
    write_results()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section(f"benchmarks, medians: {RESULTS}")
    for line in table():
        terminalreporter.write_line(line)
