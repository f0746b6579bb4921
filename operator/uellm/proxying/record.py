"""What is known of one request, whichever proxy handles it.

A record holds no content: no body, no query string, no header except the request id, no key, no tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from json.encoder import encode_basestring_ascii as json_string
from time import time_ns

from uellm.proxying.outcome import RequestOutcome

OTHER_ROUTE = "other"


_ENDINGS = tuple(f".{millisecond:03d}+00:00" for millisecond in range(1000))
"""Of timestamps, by the millisecond."""


class Timestamps:
    """Points in time as text: UTC, to the millisecond. What all those of one second share is made once."""

    def __init__(self) -> None:
        self._second = -1
        self._second_text = ""

    def at(self, epoch_ns: int) -> str:
        """So many nanoseconds after the epoch."""
        second, rest_ns = divmod(epoch_ns, 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = datetime.fromtimestamp(second, UTC).replace(tzinfo=None).isoformat()
        return self._second_text + _ENDINGS[rest_ns // 1_000_000]


_TIMESTAMPS = Timestamps()


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

    def identity(self) -> str:
        """The first members of the line in the access log.

        The line is written as text, not by way of a dictionary: its form is known, and there is one for each request.
        """
        return (
            f'"time": "{_TIMESTAMPS.at(time_ns())}", "id": {json_string(self.id)}, '
            f'"method": {json_string(self.method)}, "path": {json_string(self.path[:256])}'
        )


def json_string_or_null(text: str) -> str:
    """A string in JSON; null for an empty one."""
    return json_string(text) if text else "null"


def json_number(number: int | None) -> str:
    """A whole number in JSON."""
    return "null" if number is None else f"{number:d}"


def milliseconds(seconds: float | None) -> str:
    """Milliseconds in JSON, to one digit."""
    return "null" if seconds is None else f"{seconds * 1000:.1f}"
