"""The record of one request: a line in the access log and the input of the metrics when it has ended.

It holds nothing that was asked or answered: no body, no query string, no header except the request id, no tenant.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import UTC, datetime

from uellm.http import Pairs
from uellm.sidecar.outcome import RequestOutcome
from uellm.sidecar.scheduling import Targets

ACCESS_LOG = logging.getLogger("uellm.sidecar.access")

NO_CLASS = "-"
OTHER_ROUTE = "other"


@dataclass
class Record:
    """One request. Times in seconds on the event loop's clock; None for what did not happen or is not known."""

    method: str
    path: str
    arrival_s: float
    id: str = ""
    targets: Targets | None = None
    """What it was scheduled by; None: it was not."""
    route: str = OTHER_ROUTE
    outcome: RequestOutcome = RequestOutcome.INTERNAL_ERROR
    status: int = 0
    queue_s: float | None = None
    first_byte_s: float | None = None
    first_token_s: float | None = None
    """The instant at which the first token was there."""
    last_token_s: float | None = None
    end_s: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    sequences: int = 1
    predicted_tokens: float | None = None
    trace_headers: Pairs = ()
    """Of its span, for the engine."""
    blind: bool = False
    """The engine gives the answer whole, so nobody saw when its tokens came."""
    failed_status: int = 0
    """HTTP status that the engine's error inside a stream stands for; 0: there was none."""
    done: bool = False
    """The stream's `[DONE]` was sent. OpenAI's clients hang up on it, without waiting for the end of the answer."""

    @property
    def slo_class(self) -> str:
        """The class's name."""
        return NO_CLASS if self.targets is None else self.targets.name

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """For each further token of an answer (a sequence of it); None for one of a single token."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens is None:
            return None
        further = self.output_tokens / self.sequences - 1
        return (self.last_token_s - self.first_token_s) / further if further > 0 else None

    def to_json(self) -> str:
        """The line of the access log."""
        return json.dumps(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "id": self.id,
                "method": self.method,
                "path": self.path[:256],
                "class": self.slo_class,
                "outcome": str(self.outcome),
                "status": self.status,
                "queueMilliseconds": _milliseconds(self.queue_s),
                "firstByteMilliseconds": _milliseconds(self.first_byte_s),
                "ttftMilliseconds": _milliseconds(self.ttft_s),
                "tpotMilliseconds": _milliseconds(self.tpot_s),
                "milliseconds": _milliseconds(self.end_s - self.arrival_s),
                "promptTokens": self.prompt_tokens,
                "outputTokens": self.output_tokens,
                "predictedTokens": None if self.predicted_tokens is None else round(self.predicted_tokens),
                "bytesIn": self.bytes_in,
                "bytesOut": self.bytes_out,
            }
        )


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)
