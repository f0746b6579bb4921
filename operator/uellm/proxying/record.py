"""What is known of one request, whichever proxy handles it.

A record holds no content: no body, no query string, no header except the request id, no key, no tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from uellm.proxying.outcome import RequestOutcome

OTHER_ROUTE = "other"


@dataclass
class RequestRecord:
    """One request. Times are in seconds on the event loop's clock. None: it did not happen or is unknown."""

    method: str
    path: str
    arrival_s: float
    """When all of it was there, its body included."""
    id: str = ""
    route: str = OTHER_ROUTE
    waits: bool = True
    """Nothing of it has been sent on yet."""
    outcome: RequestOutcome = RequestOutcome.INTERNAL_ERROR
    status: int = 0
    first_byte_s: float | None = None
    end_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    done: bool = False
    """The stream's `[DONE]` was sent. OpenAI's clients then disconnect without waiting for the end of the answer."""

    def identity(self) -> dict[str, object]:
        """The first keys of the line in the access log."""
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "id": self.id,
            "method": self.method,
            "path": self.path[:256],
        }


def milliseconds(seconds: float | None) -> float | None:
    """Milliseconds to one digit."""
    return None if seconds is None else round(seconds * 1000, 1)
