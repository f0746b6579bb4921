"""For every test."""

from __future__ import annotations

import signal
import threading


def pytest_configure() -> None:
    """A job in the background ignores Ctrl-C, and so would every process that a test starts; here they hear it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
