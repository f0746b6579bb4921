"""What goes into the scheduler and comes out of it. Times are seconds on one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

FAR_DEADLINE_S = 120.0
"""Deadline, after arrival, of a request whose class has no target: about what a patient client waits."""


@dataclass(frozen=True)
class Targets:
    """What the scheduler needs of an SLO class. None: no such target."""

    name: str
    priority: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    reject_late: bool = False

    @property
    def first_s(self) -> float | None:
        """How long after its arrival a request has certainly failed without a first token; None: never."""
        return min((target_s for target_s in (self.ttft_s, self.e2e_s) if target_s is not None), default=None)


@dataclass(frozen=True)
class Lengths:
    """Predicted output tokens: median, and what four in five requests do not exceed."""

    p50: float
    p80: float


UNKNOWN_LENGTHS = Lengths(200.0, 600.0)
"""Median and P80 about as in public traces of chats; for requests that nobody predicted."""


class State(Enum):
    """Where a ticket is."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Late(Enum):
    """Why a queued request will not be served."""

    DEADLINE = "deadline"
    SHED = "shed"
    ENGINE = "engine"


class Need(NamedTuple):
    """What the order works out of a waiting request once, until its prediction changes. Times are absolute."""

    first_by_s: float
    """Its first token's target; infinite where there is none, as with `end_by_s`."""
    end_by_s: float
    spread: float
    """Standard deviation of the logarithm of its length."""
    median: float
    safe: float
    """Tokens of an answer that is as long as is planned for."""
    short: float
    """Tokens of an answer that is luckily short."""
    decode_s: float
    """Engine seconds of its answer, by the model as it is."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One request as the scheduler sees it: what the caller knows first, then what the scheduler keeps of it."""

    targets: Targets
    arrival_s: float
    prompt_tokens: int = 0
    lengths: Lengths | None = None
    max_tokens: int | None = None
    tenant: str = ""
    prefix: tuple[int, ...] | None = None
    """Hashes of the prompt's successive blocks of `PREFIX_BLOCK_TOKENS` tokens, each of all the prompt up to there."""
    sequences: int = 1
    body_bytes: int = 0

    state: State = field(default=State.NEW, init=False)
    sequence: int = field(default=-1, init=False)
    deadline_s: float = field(default=0.0, init=False)
    """By when the first token must be there; set at submission, for it depends on the engine's speed."""
    dispatched_s: float | None = field(default=None, init=False)
    first_token_s: float | None = field(default=None, init=False)
    last_token_s: float | None = field(default=None, init=False)
    tokens: int = field(default=0, init=False)
    uncached_tokens: int = field(default=0, init=False)
    """Prompt tokens that are probably not in the engine's prefix cache."""
    leaf: int = field(default=-1, init=False)
    stamp: int = field(default=0, init=False)
    work_s: float = field(default=0.0, init=False)
    density: float = field(default=0.0, init=False)
    need: Need | None = field(default=None, init=False)
    """Where it is in the plan, its work and its density there, and what it needs; the order's own."""

    @property
    def length(self) -> Lengths:
        """The predicted length, or a wide guess around what is common, within `max_tokens`."""
        lengths = self.lengths or UNKNOWN_LENGTHS
        most = self.max_tokens
        if most is None or most >= lengths.p80:
            return lengths
        return Lengths(min(lengths.p50, most), most)

    @property
    def remaining_tokens(self) -> float:
        """Tokens that are expected to come still; an answer that outgrew its prediction goes on for a while."""
        got = self.tokens / self.sequences
        expected = max(self.length.p50 - got, 0.35 * got, 16.0)
        if self.max_tokens is not None:
            expected = max(min(expected, self.max_tokens - got), 0.0)
        return expected * self.sequences

    @property
    def reject_s(self) -> float | None:
        """When it leaves the queue unserved: at its target if its class says so; None: it is served however late."""
        first_s = self.targets.first_s if self.targets.reject_late else None
        return None if first_s is None else self.arrival_s + first_s


PREFIX_BLOCK_TOKENS = 512


@dataclass(frozen=True)
class EngineState:
    """What is known of the engine. None: unknown. `stale`: the figures are old: only `ready` holds, and it is taken for
    full."""

    ready: bool
    running: int = 0
    waiting: int = 0
    kv_used_share: float | None = None
    kv_tokens: int | None = None
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    preemptions: int = 0
    prompt_tokens: float | None = None
    cached_tokens: float | None = None
    """Of all prompts since the engine's start, and of these what was in its prefix cache."""
    stale: bool = False


@dataclass(frozen=True)
class Options:
    """Order, bounds (in requests and bytes), and which guards are on."""

    policy: str = "SLO-ODBS"
    max_queued: int = 1024
    max_in_flight: int = 256
    max_queued_bytes: int = 256 * 1024 * 1024
    gate: bool = True
    past_future: bool = True
    tpot_guard: bool = True
    shedding: bool = True
    fairness: bool = True
    ageing: bool = True


class QueueFull(Exception):
    """No room: the caller answers 429."""
