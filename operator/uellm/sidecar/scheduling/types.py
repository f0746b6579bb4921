"""The scheduler's inputs and outputs. Times are in seconds on one monotonic clock."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

FAR_DEADLINE_S = 120.0
"""Deadline, after arrival, of a request whose class has no target: about as long as a patient client waits."""


@dataclass(frozen=True)
class Targets:
    """The part of an SLO class that the scheduler needs. None: no such target."""

    name: str
    priority: int = 0
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    reject_late: bool = False

    @property
    def first_s(self) -> float | None:
        """Time after arrival at which a request without a first token has certainly failed. None: never."""
        return min((target_s for target_s in (self.ttft_s, self.e2e_s) if target_s is not None), default=None)


@dataclass(slots=True)
class Lengths:
    """Predicted output tokens: the median, and the 80th percentile. Never changed; to freeze it would triple the time
    to make one."""

    p50: float
    p80: float


UNKNOWN_LENGTHS = Lengths(200.0, 600.0)
"""For requests without a prediction: about the median and P80 of public chat traces."""


class State(Enum):
    """The state of a ticket."""

    NEW = "new"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"


class Shows(Enum):
    """What an answer shows while the engine works on it."""

    TOKENS = "tokens"
    """Its tokens, as they come."""
    END = "end"
    """Its end alone, because it comes whole."""
    PROMPT = "prompt"
    """Its end, which comes as soon as the prompt is computed: an embedding or a score."""


class Late(Enum):
    """Why a queued request will not be served."""

    DEADLINE = "deadline"
    SHED = "shed"
    ENGINE = "engine"


class Need(NamedTuple):
    """What the order derives from a waiting request. It is computed again when the prediction changes."""

    first_by_s: float
    """Absolute time by which the first token is due; infinite without such a target."""
    end_by_s: float
    """Absolute time by which the answer is due; infinite without such a target."""
    spread: float
    """Standard deviation of the logarithm of the answer's length."""
    median: float
    """Median tokens of the answer."""
    safe: float
    """Tokens of a long answer, which an end-to-end deadline is planned for."""
    short: float
    """Tokens of a short answer, which decides whether a request is hopeless."""
    decode_s: float
    """Engine seconds of the answer, by the uncorrected model."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One request. The caller sets the first fields; the scheduler keeps the others."""

    targets: Targets
    arrival_s: float
    prompt_tokens: int = 0
    lengths: Lengths | None = None
    max_tokens: int | None = None
    tenant: str = ""
    prefix: tuple[int, ...] | None = None
    """A hash for each block of `PREFIX_BLOCK_TOKENS` prompt tokens. Each covers the prompt up to its block's end."""
    sequences: int = 1
    body_bytes: int = 0
    may_batch: bool = False
    """Nobody reads its tokens one by one, so the engine may report several at once."""
    each_step: bool = True
    """Its stream has an event for each step; tools, hidden reasoning and own intervals leave some out."""
    longest_prompt_tokens: int = 0
    """Of its prompts' lengths, one that the longest has at least; 0: not known."""
    shows: Shows = Shows.TOKENS

    state: State = field(default=State.NEW, init=False)
    sequence: int = field(default=-1, init=False)
    deadline_s: float = field(default=0.0, init=False)
    """When the first token is due. Set at submission, because it depends on the engine's speed."""
    dispatched_s: float | None = field(default=None, init=False)
    first_token_s: float | None = field(default=None, init=False)
    last_token_s: float | None = field(default=None, init=False)
    filled: bool = field(default=False, init=False)
    """The engine has computed its prompt, as far as is known."""
    tokens: int = field(default=0, init=False)
    promised_tokens: float = field(default=0.0, init=False)
    """Expected tokens of its answer. Set when it is dispatched."""
    batched: bool = field(default=False, init=False)
    """The engine is asked to report several tokens at once. Set when it is dispatched."""
    distrusted: bool = field(default=False, init=False)
    """Its gaps showed a slow client."""
    events: int = field(default=0, init=False)
    counted: float = field(default=0.0, init=False)
    """Events of its stream so far, and the tokens that were counted by them."""
    uncached_tokens: int = field(default=0, init=False)
    """Prompt tokens that are probably not in the engine's prefix cache."""
    leaf: int = field(default=-1, init=False)
    """Its leaf in the on-time set."""
    stamp: int = field(default=0, init=False)
    """Marks its latest entry: positive in the on-time set, negative in the best-effort queue, 0 in neither."""
    detour: bool = field(default=False, init=False)
    """It waits outside of the order."""
    passed_until_s: float | None = field(default=None, init=False)
    """Until when others pass it. None: it always fitted when it was next."""
    work_s: float = field(default=0.0, init=False)
    """Its engine seconds in the on-time set."""
    density: float = field(default=0.0, init=False)
    """Its chance of being on time for each engine second, weighted."""
    need: Need | None = field(default=None, init=False)
    """Kept by the order."""

    @property
    def measures(self) -> bool:
        """Whether the gaps between its events are those of the engine's steps."""
        return self.each_step and not self.batched and not self.distrusted

    @property
    def length(self) -> Lengths:
        """The predicted length, or that of a typical request, bounded by `max_tokens`."""
        lengths = self.lengths or UNKNOWN_LENGTHS
        most = self.max_tokens
        if most is None or most >= lengths.p80:
            return lengths
        return Lengths(min(lengths.p50, most), most)

    @property
    def remaining_tokens(self) -> float:
        """Expected further tokens. An answer beyond its prediction is expected to continue for a while."""
        got = self.tokens / self.sequences
        expected = max(self.length.p50 - got, 0.35 * got, 16.0)
        if self.max_tokens is not None:
            expected = max(min(expected, self.max_tokens - got), 0.0)
        return expected * self.sequences

    @property
    def reject_s(self) -> float | None:
        """When it leaves the queue unserved, if its class rejects late requests. None: it is served late."""
        first_s = self.targets.first_s if self.targets.reject_late else None
        return None if first_s is None else self.arrival_s + first_s


PREFIX_BLOCK_TOKENS = 512


class EngineSteps(NamedTuple):
    """What the engine's steps did since its start."""

    number: float
    """Steps in which an answer got a token."""
    gap_s: float
    gaps: float
    """The sum of the times between two tokens of an answer, and how many of these there were, over all answers."""
    prompt_tokens: float
    """Without those that were in the prefix cache."""
    answer_tokens: float
    """Without the first one of each answer."""


@dataclass(frozen=True)
class EngineState:
    """The engine's latest metrics. None: unknown."""

    ready: bool
    running: int | None = None
    waiting: int = 0
    kv_used_share: float | None = None
    kv_tokens: int | None = None
    max_model_len: int | None = None
    """Tokens of the longest prompt and answer together."""
    block_tokens: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int | None = None
    preemptions: int = 0
    prompt_tokens: float | None = None
    """Tokens of all prompts since the engine's start."""
    cached_tokens: float | None = None
    """Those of them that were in the prefix cache."""
    steps: EngineSteps | None = None
    stale: bool = False
    """The metrics are old. Only `ready` is valid, and the engine counts as full."""


@dataclass(frozen=True)
class Options:
    """Policy, bounds in requests and bytes, and the guards that are on."""

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
    """The queue is full. The caller answers 429."""
