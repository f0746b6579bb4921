"""A parsed request: how it is sent to the engine, and what predictor and scheduler need of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from uellm.prompt import Prompt
from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire.shape import AnswerShape
from uellm.vllm_routes import RouteKind

BATCH_TOKENS = 8
"""Tokens in an event where nobody reads them one by one. Each event costs vLLM's own server about as much as a token
costs a small model: with one event a token, whole answers took a third of an engine's rate on two shared cores."""

_BATCHES = b'"stream":true,"stream_interval":%d,"stream_options":{"include_usage":true,"continuous_usage_stats":true}'


class Mode(Enum):
    """How a request is sent to the engine and its answer returned."""

    AS_IS = "as-is"
    """Both unchanged."""
    STREAM_AS_IS = "stream-as-is"
    """Both unchanged; the answer is a stream, whose events are counted."""
    STREAM_STRIP_USAGE = "stream-strip-usage"
    """The usage is requested in addition and removed from the stream again."""
    AGGREGATE = "aggregate"
    """Requested as a stream with usage, and assembled for the client."""


@dataclass(slots=True)
class Call:
    """One request for the GPU."""

    path: str
    kind: RouteKind
    mode: Mode
    targets: Targets
    tenant: str
    prompt: Prompt
    prompt_tokens: int
    """Estimated; exact if the prompt consists of token ids."""
    sequences: int = 1
    """Choices times prompts: how many answers are generated."""
    model: str = ""
    """The name that it asks for; empty where it names none, or is not parsed."""
    max_tokens: int | None = None
    shape: AnswerShape | None = None
    """Shape of the answer, if it is assembled here."""
    teaches: bool = False
    """The engine's own answer to it shows the shape of answers, if that is not known yet."""
    body: bytes = field(default=b"", repr=False)
    """As received, but without the fields that `added` sets."""
    added: bytes = b""
    """Fields to append to the body's object."""
    empty: bool = False
    """The body's object has no field."""
    takes_priority: bool = False
    each_step: bool = False
    """A stream of its answer has an event for each of the engine's steps."""
    may_batch: bool = False
    """Its answer is assembled here, from events that may have several tokens."""
    background: bool = False
    """The engine answers at once and works on; the answer to another request has the outcome."""

    @property
    def rewrites_events(self) -> bool:
        """The engine's events are read and changed: they tell the usage that is requested in addition."""
        return bool(self.added)

    def upstream_body(self, priority: int = 0, *, batched: bool = False) -> bytes:
        """The body for the engine, with `priority` (lower first) if the engine accepts it.

        `batched`: ask for `BATCH_TOKENS` tokens an event.
        """
        added = _BATCHES % BATCH_TOKENS if batched else self.added
        if self.takes_priority:
            added = b'%s"priority":%d' % (added + b"," if added else b"", priority)
        if not added:
            return self.body
        end = self.body.rindex(b"}")
        return b"".join((self.body[:end], b"" if self.empty else b",", added, self.body[end:]))
