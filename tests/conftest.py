"""Settings for all tests."""

from __future__ import annotations

import importlib.metadata
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The duration of an example means nothing on a busy machine, but its deadline would fail whole runs.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """Restore the default handling of Ctrl-C, which a background job and all its children would ignore."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


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
