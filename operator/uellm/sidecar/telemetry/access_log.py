"""The record of one request. At its end it becomes a line of the access log and the input of the metrics."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as json_string

from uellm.http import Pairs
from uellm.proxying.record import RequestRecord, json_number, json_string_or_null, milliseconds
from uellm.sidecar.scheduling import Targets

ACCESS_LOG = logging.getLogger("uellm.sidecar.access")

NO_CLASS = "-"


@dataclass
class Record(RequestRecord):
    """One request."""

    targets: Targets | None = None
    """The targets that it was scheduled by. None: it was not scheduled."""
    adapter: str = ""
    """The LoRA adapter that it asks for; empty for the model itself."""
    waited_s: float = 0.0
    """How long it had been at the gateway, where it then arrived."""
    queue_s: float | None = None
    first_token_s: float | None = None
    """When the first token came."""
    last_token_s: float | None = None
    prompt_tokens: int | None = None
    """As the engine counted them."""
    estimated_prompt_tokens: int | None = None
    """As they were estimated before its turn. None: its body was not read."""
    output_tokens: int | None = None
    sequences: int = 1
    predicted_tokens: float | None = None
    trace_headers: Pairs = ()
    """Trace headers of its span, for the engine."""
    blind: bool = False
    """The engine sends the answer whole, so the times of its tokens are unknown."""
    in_background: bool = False
    """Its answer says no more than that the engine has begun."""
    failed_status: int = 0
    """HTTP status of an error that the engine reported inside a stream; 0: none."""

    @property
    def slo_class(self) -> str:
        """The class's name."""
        return NO_CLASS if self.targets is None else self.targets.name

    @property
    def sent_s(self) -> float | None:
        """From arrival until sent to the engine."""
        return None if self.queue_s is None else self.waited_s + self.queue_s

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Mean time of each token after the first, in one sequence. None for a single token."""
        if self.first_token_s is None or self.last_token_s is None or self.output_tokens is None:
            return None
        further = self.output_tokens / self.sequences - 1
        return (self.last_token_s - self.first_token_s) / further if further > 0 else None

    def to_json(self) -> str:
        """The line of the access log."""
        predicted = "null" if self.predicted_tokens is None else round(self.predicted_tokens)
        return (
            f'{{{self.identity()}, "class": {json_string(self.slo_class)}, '
            f'"adapter": {json_string_or_null(self.adapter)}, "outcome": "{self.outcome}", "status": {self.status}, '
            f'"queueMilliseconds": {milliseconds(self.queue_s)}, '
            f'"firstByteMilliseconds": {milliseconds(self.first_byte_s)}, '
            f'"ttftMilliseconds": {milliseconds(self.ttft_s)}, "tpotMilliseconds": {milliseconds(self.tpot_s)}, '
            f'"milliseconds": {(self.end_s - self.arrival_s) * 1000:.1f}, '
            f'"promptTokens": {json_number(self.prompt_tokens)}, "outputTokens": {json_number(self.output_tokens)}, '
            f'"predictedTokens": {predicted}, "bytesIn": {self.bytes_in}, "bytesOut": {self.bytes_out}}}'
        )
