"""Settings for all tests."""

from __future__ import annotations

import asyncio
import importlib.metadata
import signal
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
import uvloop
from hypothesis import HealthCheck, settings

# The duration of an example means nothing on a busy machine, but its deadline would fail whole runs.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

SHOWN_LINES = 60


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the event loop of the programs: uvloop's differs from asyncio's in small ways."""
    return {"uvloop": uvloop.new_event_loop}


def pytest_configure(config: pytest.Config) -> None:
    """Show failures at once, and restore the default handling of Ctrl-C, which a background job would ignore."""
    config.pluginmanager.register(_ShownAtOnce(config))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


class _ShownAtOnce:
    """Prints a failure when it happens: a run that is ended before its summary still tells what failed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if report.failed and terminal is not None:
            terminal.write_sep("_", f"{report.nodeid} ({report.when})")
            terminal.write_line(report.longreprtext)
            for title, text in report.sections:
                terminal.write_line(f"--- {title}")
                terminal.write_line("\n".join(text.splitlines()[-SHOWN_LINES:]))


@pytest.fixture
def packages_alone(tmp_path: Path) -> Callable[[Iterable[str]], Path]:
    """Makes a directory for PYTHONPATH that contains only the named distributions; use it with `python -S`."""

    def link(names: Iterable[str]) -> Path:
        directory = tmp_path / "packages-alone"
        directory.mkdir()
        for name in dict.fromkeys(names):
            distribution = importlib.metadata.distribution(name)
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                if not (directory / top).exists():  # several distributions share a namespace package
                    (directory / top).symlink_to(Path(str(distribution.locate_file(top))))
        return directory

    return link
