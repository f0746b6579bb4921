"""What one replica says of its load: written by its sidecar at most every 200 ms, read by the gateway's router.

Waiting work is given by slack, because a replica serves by deadline: a new request waits only for what is due before
it. Numbers are what the sidecar itself schedules by, so that the router predicts what the sidecar will do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from uellm.documents import VERSION, reading
from uellm.step_time import StepTime

_NAME = "the report of a replica's load"
_LONGEST_TEXT = 128
_LONGEST_NAME = 256
MOST_NAMES = 256
"""Names that are read from one report."""

SLACK_BOUNDS_S = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""Upper bounds of the spans of slack. What is due later than the last one is in one more span."""

SPANS = len(SLACK_BOUNDS_S) + 1

MOST_PREFIXES = 4096
"""Hashes that are read from one report: 2 million tokens of KV cache."""


class WaitingLoad(NamedTuple):
    """Requests that wait in a replica's queue, and are due in one span of time."""

    requests: int = 0
    prompt_tokens: int = 0
    """Tokens of their prompts that are not in the prefix cache."""


NOTHING = WaitingLoad()


@dataclass(frozen=True, slots=True)
class PrefixNews:
    """The prefix blocks that a replica's engine got last, the newest last.

    `count` is how many it has got since its start. A reader that knows `count - n` of them takes the last n hashes. A
    reader that has missed more than there are hashes only misses those.
    """

    count: int = 0
    hashes: tuple[int, ...] = ()
    """Hashes as in `uellm.prompt.Prompt.prefix`."""

    def since(self, count: int) -> PrefixNews:
        """The news for a reader that knows the first `count`."""
        new = self.count - count
        return PrefixNews(self.count, self.hashes[-new:] if new > 0 else ())


@dataclass(frozen=True, slots=True)
class ReplicaLoad:
    """The whole report. None and 0: unknown, or nothing."""

    incarnation: str = ""
    """Names the engine's process. Another name: its prefix cache is empty, and `prefixes` counts from 0."""
    ready: bool = True
    draining: bool = False
    names: tuple[str, ...] = ()
    """What the engine answers to: first the model's served name, then its loaded adapters. Empty: not told."""
    step: StepTime | None = None
    """Seconds of a step as the sidecar expects them now."""
    measured: bool = False
    """Whether `step` is corrected by measured steps."""
    chunk_tokens: int = 0
    """Most tokens of one step."""
    gap_s: float = 0.0
    """Recent mean of the seconds between two tokens of an answer."""
    sequences: int = 0
    """Requests in the engine."""
    max_sequences: int = 0
    decoding: int = 0
    """Sequences of them that have their first token."""
    remaining_tokens: float = 0.0
    """Expected tokens that the requests in the engine will still generate."""
    unfilled_tokens: float = 0.0
    """Prompt tokens that the engine has got and not yet computed."""
    kv_tokens: int = 0
    """Tokens in the KV cache of requests that have their first token."""
    kv_capacity_tokens: int = 0
    paced_tokens_per_second: float | None = None
    """Prompt tokens that the sidecar lets the engine have, so that answers keep their pace; None: no limit."""
    waiting: tuple[WaitingLoad, ...] = (NOTHING,) * SPANS
    """Requests in the sidecar's queue that it expects to serve in time, by slack: until `SLACK_BOUNDS_S[i]`."""
    late: WaitingLoad = NOTHING
    """Requests in the queue that it does not expect to serve in time. They are served after the others."""
    prefixes: PrefixNews = field(default_factory=PrefixNews)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form. Typically 1 KiB, and 11 bytes for each hash."""
        return {
            "version": VERSION,
            "incarnation": self.incarnation,
            "ready": self.ready,
            "draining": self.draining,
            "names": list(self.names),
            "stepSeconds": None if self.step is None else self.step.to_dict(),
            "measured": self.measured,
            "chunkTokens": self.chunk_tokens,
            "gapSeconds": self.gap_s,
            "sequences": self.sequences,
            "maxSequences": self.max_sequences,
            "decoding": self.decoding,
            "remainingTokens": self.remaining_tokens,
            "unfilledTokens": self.unfilled_tokens,
            "kvTokens": self.kv_tokens,
            "kvCapacityTokens": self.kv_capacity_tokens,
            "pacedTokensPerSecond": self.paced_tokens_per_second,
            "waiting": [[span.requests, span.prompt_tokens] for span in self.waiting],
            "late": [self.late.requests, self.late.prompt_tokens],
            "prefixes": {"count": self.prefixes.count, "hashes": list(self.prefixes.hashes)},
        }

    @classmethod
    def from_dict(cls, document: Any) -> ReplicaLoad:
        """The inverse of `to_dict`. Raises UnreadableDocument for another version.

        The report comes out of a pod, so a field of the wrong type or without meaning counts as absent.
        """
        with reading(_NAME, document) as data:
            incarnation = data.get("incarnation")
            paced = _number(data.get("pacedTokensPerSecond"))
            return cls(
                incarnation=incarnation[:_LONGEST_TEXT] if isinstance(incarnation, str) else "",
                ready=data.get("ready", True) is True,
                draining=data.get("draining") is True,
                names=_names(data.get("names")),
                step=StepTime.if_sane(data.get("stepSeconds")),
                measured=data.get("measured") is True,
                chunk_tokens=int(_number(data.get("chunkTokens"))),
                gap_s=_number(data.get("gapSeconds")),
                sequences=int(_number(data.get("sequences"))),
                max_sequences=int(_number(data.get("maxSequences"))),
                decoding=int(_number(data.get("decoding"))),
                remaining_tokens=_number(data.get("remainingTokens")),
                unfilled_tokens=_number(data.get("unfilledTokens")),
                kv_tokens=int(_number(data.get("kvTokens"))),
                kv_capacity_tokens=int(_number(data.get("kvCapacityTokens"))),
                paced_tokens_per_second=paced or None,
                waiting=_spans(data.get("waiting")),
                late=_waiting(data.get("late")),
                prefixes=_prefixes(data.get("prefixes")),
            )


_MOST = 1e12
_HASH_END = 2**32
_PLAIN = (int, float)
_NOTHING_WAITS = [0, 0]


def _number(value: Any) -> float:
    """A number between 0 and 10^12; 0 for anything else."""
    if type(value) in _PLAIN and 0 <= value <= _MOST:
        return float(value)  # at once: a gateway reads some 40 of them in a report, and thousands of reports a second
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < math.inf:
        return 0.0
    return float(min(max(value, 0), _MOST))  # before the conversion: an int may be too large for a float


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        return ()
    return tuple(name[:_LONGEST_NAME] for name in value[:MOST_NAMES])


def _waiting(value: Any) -> WaitingLoad:
    if value == _NOTHING_WAITS:
        return NOTHING
    if not isinstance(value, list) or len(value) != 2:
        return NOTHING
    return WaitingLoad(int(_number(value[0])), int(_number(value[1])))


def _spans(value: Any) -> tuple[WaitingLoad, ...]:
    if not isinstance(value, list) or len(value) != SPANS:
        return (NOTHING,) * SPANS
    return tuple(_waiting(span) for span in value)


def _prefixes(value: Any) -> PrefixNews:
    if not isinstance(value, Mapping) or not isinstance(value.get("hashes"), list):
        return PrefixNews()
    hashes = value["hashes"][-MOST_PREFIXES:]
    valid = all(isinstance(block, int) and not isinstance(block, bool) and 0 <= block < _HASH_END for block in hashes)
    count = int(_number(value.get("count")))
    return PrefixNews(count, tuple(hashes)) if valid and count >= len(hashes) else PrefixNews()
