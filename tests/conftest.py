"""What all tests share: what they cost, an end for what hangs, nothing of the user's own runs."""

import faulthandler
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.meter import CpuMeter, cost_lines

HARD_END_S = 120.0
"""After --session-timeout, which ends a run between two tests, for a test that never ends."""
OF_THE_USER = ("RAY_ADDRESS", "RAY_NAMESPACE", "MLFLOW_TRACKING_URI")
"""Variables that would lead a test to a cluster or a server of the user's."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--core-minutes",
        type=float,
        help="fail a run that costs more CPU time than that, in all its processes",
    )


class ByFolder(LoadScopeScheduling):
    """Keeps in one process the tests that share engines, or are jobs; others go by file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        folder = "/".join(file.split("/")[:2])
        return folder if folder in ("tests/e2e", "tests/integration") else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFolder:
    return ByFolder(config, log)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Costs(config), "costs")
    if session_timeout := config.getoption("session_timeout"):
        stderr = os.dup(2)  # pytest captures what is written to the descriptor itself
        end_s = session_timeout + HARD_END_S
        if not hasattr(config, "workerinput"):
            end_s += HARD_END_S  # time to name the test that its worker was at
        faulthandler.dump_traceback_later(end_s, exit=True, file=stderr)
        config.add_cleanup(faulthandler.cancel_dump_traceback_later)


class Costs:
    """Reads what tests cost where they run, prints it at the end, and holds the limit."""

    def __init__(self, config: pytest.Config) -> None:
        self._limit = config.getoption("--core-minutes")
        self._judges = not hasattr(config, "workerinput")
        """Whether this process sees all others: it is none of pytest-xdist's workers."""
        self._meter = CpuMeter()
        self._tests: dict[str, float] = {}
        self._so_far_s = 0.0

    def pytest_collection_finish(self) -> None:
        self._so_far_s = self._meter.seconds()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Iterator[None]:
        report = yield
        if call.when == "teardown":
            before, self._so_far_s = self._so_far_s, self._meter.seconds()
            report.user_properties.append(("cpu_s", self._so_far_s - before))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == "cpu_s":
                self._tests[report.nodeid] = value

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> Iterator[None]:
        result = yield
        if self._judges and self._over_budget() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        total_s = self._meter.seconds()
        terminalreporter.section("costs")
        for line in cost_lines(self._tests, total_s):
            terminalreporter.write_line(line)
        if self._over_budget():
            terminalreporter.write_line(
                f"expected at most {self._limit:g} core-minutes (--core-minutes), found "
                f"{total_s / 60:.2f}: make the most expensive tests cheaper, share engines and "
                "processes, or mark tests `extended`, for `make test-all`",
                red=True,
            )

    def _over_budget(self) -> bool:
        return self._limit is not None and self._meter.seconds() > 60 * self._limit


@pytest.fixture(scope="session", autouse=True)
def _nothing_of_the_user() -> Iterator[None]:
    """Keep Ray's sockets, logs and token in a folder of this process's own, and off a cluster.

    A short path: sockets lie in it.
    """
    folder = tempfile.mkdtemp(prefix="ray")
    token = Path(folder, "token")
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        for name in OF_THE_USER:
            patch.delenv(name, raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        # Ray gives its actors low priority by default; on a busy machine they would wait for hours.
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        yield
    shutil.rmtree(folder, ignore_errors=True)
