"""Faults of a proxy's own bookkeeping. They are counted and logged, and no answer is lost by them."""

from __future__ import annotations

import logging
import traceback
from contextlib import suppress
from types import TracebackType

from uellm.proxying.metrics import Counter

LOG = logging.getLogger("uellm.proxying")


class Faults:
    """Counts faults by part."""

    def __init__(
        self,
        name: str = "uellm_faults_total",
        text: str = "Faults of the sidecar's own bookkeeping; no answer is lost by them.",
    ) -> None:
        """Name and HELP text of the metric."""
        self.counter = Counter(name, text, "part")

    def count(self, part: str, error: Exception, request: str = "") -> None:
        """Count a fault and log where it happened, without the error's text, which may quote the request."""
        with suppress(Exception):  # the caller continues even if counting fails
            frames = "".join(traceback.format_tb(error.__traceback__))
            LOG.error("%s failed by %s, request %s, at:\n%s", part, type(error).__name__, request or "-", frames)
            self.counter.add(part)

    def guard(self, part: str, request: str = "") -> FaultGuard:
        """A context manager that counts an exception and ends only its block."""
        return FaultGuard(self, part, request)


class FaultGuard:
    """The context manager of `Faults.guard`. Only an `Exception` is caught, so cancellation propagates."""

    __slots__ = ("_faults", "_part", "_request", "failed")

    def __init__(self, faults: Faults, part: str, request: str) -> None:
        self._faults, self._part, self._request = faults, part, request
        self.failed = False

    def __enter__(self) -> FaultGuard:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.take(error)
        return True

    def take(self, error: Exception) -> None:
        """Count an exception that the caller caught."""
        self.failed = True
        self._faults.count(self._part, error, self._request)
