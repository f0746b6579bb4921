"""A request that was read: how it goes to the engine, and what the predictor and the scheduler need of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire.prompt import Prompt
from uellm.sidecar.wire.routes import RouteKind
from uellm.sidecar.wire.shape import AnswerShape


class Mode(Enum):
    """How a request goes to the engine and its answer comes back."""

    AS_IS = "as-is"
    """Both unchanged."""
    STREAM_AS_IS = "stream-as-is"
    """Both unchanged; the answer is a stream, whose events are counted."""
    STREAM_STRIP_USAGE = "stream-strip-usage"
    """The usage is asked for besides, and taken out of the stream again."""
    AGGREGATE = "aggregate"
    """Asked for as a stream with its usage, and put together for the client."""


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
    """Estimated, exact where the prompt consists of token ids."""
    sequences: int = 1
    """Choices times prompts: how many answers are generated."""
    max_tokens: int | None = None
    shape: AnswerShape | None = None
    """What the answer is to look like, if it is put together here."""
    teaches: bool = False
    """The engine's own answer to it shows what answers look like, should that not be known."""
    body: bytes = field(default=b"", repr=False)
    """As it came, or without the fields of `added` where it had some of them."""
    added: bytes = b""
    """Fields that go to the end of the body's object."""
    empty: bool = False
    """The body's object has no field of its own."""
    takes_priority: bool = False

    @property
    def body_bytes(self) -> int:
        """What it holds in memory."""
        return len(self.body)

    def upstream_body(self, priority: int = 0) -> bytes:
        """The body for the engine; `priority` (lower goes first) is told to one that goes by it."""
        added = self.added
        if self.takes_priority:
            added = b'%s"priority":%d' % (added + b"," if added else b"", priority)
        if not added:
            return self.body
        end = self.body.rindex(b"}")
        return b"".join((self.body[:end], b"" if self.empty else b",", added, self.body[end:]))
