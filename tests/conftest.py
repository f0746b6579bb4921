"""For every test."""

from __future__ import annotations

import signal
import threading

from hypothesis import HealthCheck, settings

# How long an example takes says nothing on a machine that has other work, but failed whole runs.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """A job in the background ignores Ctrl-C, and so would every process that a test starts; here they hear it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
