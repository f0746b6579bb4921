"""What the scheduler knows of the engine at any moment: what it has in hand, and how fast that goes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from uellm.sidecar.scheduling.estimate import StepEstimate, StepModel
from uellm.sidecar.scheduling.share import Share
from uellm.sidecar.scheduling.types import EngineState, Ticket

UNKNOWN_CHUNK = 2048
"""Tokens of a step where the engine does not tell: vLLM's own default for online serving."""


SAME_MOMENT_S = 1e-3
"""What is sent so soon after a step's end joins the next one."""

DEBT_SHARE = 0.8
MOST_DEBT_TARGETS = 20.0
"""Of the tightest TPOT target: what a gap may take without debt, and the debt that is remembered."""

SLOW_PROBE_GAPS = 0.5
"""So far behind another answer that got two tokens since, the probe tells of its client and not of the engine."""

LENGTH_MARGIN = 2.0
TELLING_ANSWER_TOKENS = 2000.0
"""Predicted lengths are cut where answers were less than half as long, once so many predicted tokens were judged."""

HOPE = 2.0
"""So many times the model's times, as they were given, shedding goes by at most."""


class Pace(NamedTuple):
    """How fast the engine is at a moment."""

    rate: float
    """Prompt tokens a second while prompts wait, beside the present decoding."""
    step_s: float
    """Seconds of a step with as much of a prompt as it takes."""
    gap_s: float
    """Seconds between two tokens of an answer, as they are of late."""
    prefill_token_s: float
    decode_factor: float
    """As in the estimate."""
    hoped_rate: float
    hoped_gap_s: float
    """No worse than what the model as it was given says, or little: nobody is refused for what was learnt wrong."""


@dataclass(slots=True)
class _Moment:
    """First tokens that came at one moment without an answer that ran: the tokens of their prompts, and how long these
    took. `idle`: they came to an engine that had nothing to do."""

    began_s: float
    ended_s: float
    idle: bool
    tokens: int = 0


class EngineView:
    """Requests in flight, in sums that each event changes by a constant cost."""

    def __init__(self, step: StepEstimate) -> None:
        self.step = step
        self.chunk_tokens = UNKNOWN_CHUNK
        """Tokens of one step."""
        self.state = EngineState(ready=False)
        self.running: dict[Ticket, None] = {}
        self.unfilled_tokens = 0
        """Prompt tokens that were sent and whose first token has not come."""
        self.kv_tokens = 0
        """Tokens that the decoding requests hold in the KV cache."""
        self.prompt_tokens = 0
        self.got_tokens = 0
        """Tokens of prompts and of answers so far, of all that is in flight."""
        self.decoding = 0
        self.promised_tokens = 0.0
        """Expected output of all that is in flight."""
        self.answers = Share()
        """Tokens of answers that ended, of those that were predicted."""
        self.sent_since_state = 0
        self.paced_rate = inf
        """Prompt tokens a second that pacing allows."""
        self.filled_tokens = 0
        """Prompt tokens of all first tokens so far."""
        self.debt_s = 0.0
        """By how much the last steps together were slower than the tightest TPOT target in flight allows."""
        self._tpots: Counter[float] = Counter()
        self._done_tokens = 0.0
        """Of the unfilled tokens, those that were done in steps that ended by `_step_s`."""
        self._step_s = 0.0
        self._probe: Ticket | None = None
        self._moment: _Moment | None = None
        self._first_s = 0.0
        """When the last first token came."""
        self._idle = True
        """Whether the engine had nothing to do when it got the prompts that it has."""
        self._measured_tokens = 0
        """Of the filled tokens, those of steps whose time was measured."""
        self._loads: tuple[float, float, float] | None = None
        self._pace: Pace | None = None
        """None: something has changed since it was worked out."""

    @property
    def tightest_tpot_s(self) -> float | None:
        """The tightest TPOT target in flight."""
        return min(self._tpots, default=None)

    def told(self, state: EngineState) -> None:
        """What the engine tells of itself is newer."""
        self.state = state
        self.chunk_tokens = state.max_num_batched_tokens or UNKNOWN_CHUNK
        self.sent_since_state = 0
        self._pace = None

    def restarted(self) -> None:
        """Another engine process may be a faster or a slower one: what was learnt holds until it tells otherwise."""
        self.step.loosen()
        self.debt_s = 0.0

    def assume(self, model: StepModel) -> None:
        """Its steps' times are to be learnt anew, from this model on."""
        self.step.begin(model)
        self._pace = None

    def pace(self) -> Pace:
        """How fast it is, with what it has in hand now."""
        pace = self._pace
        if pace is None:
            step, chunk = self.step, max(self.chunk_tokens - self.decoding, 1)
            step_s = step.step_s(chunk, self.kv_tokens, self.decoding)
            hoped_s = HOPE * step.given_step_s(chunk, self.kv_tokens, self.decoding)
            pace = self._pace = Pace(
                chunk / step_s,
                step_s,
                step.gap_s,
                step.prefill_token_s,
                step.decode_factor,
                chunk / (hoped_s if hoped_s < step_s else step_s),
                hoped_s if hoped_s < step.gap_s else step.gap_s,
            )
        return pace

    def backlog_tokens(self, now_s: float, haste: float = 1.0) -> float:
        """Prompt tokens that the engine has probably still to do, were it so many times as fast as the estimate.

        What it did of an unfinished prompt nobody tells.
        """
        unfilled = self.unfilled_tokens
        if not unfilled:
            return 0.0
        spent_s = now_s - self._step_s
        now_done = haste * self.pace().rate * spent_s if spent_s > 0.0 else 0.0
        if self._probe is not None:
            # A step does no more than it began with: what was sent since then waits for the next.
            now_done = min(now_done, self._step_load()[0] if self._loads is None else self._loads[0])
        left = unfilled - self._done_tokens - now_done
        return left if left > 0.0 else 0.0

    @property
    def length_share(self) -> float:
        """What of the predicted lengths is to be reckoned with: less than all once answers prove far shorter."""
        answers = self.answers
        if answers.of_tokens < TELLING_ANSWER_TOKENS:
            return 1.0
        return min(1.0, LENGTH_MARGIN * answers.value)

    @property
    def unmeasured_tokens(self) -> int:
        """Prompt tokens that were sent and are in no gap between tokens that was measured."""
        return self.unfilled_tokens + self.filled_tokens - self._measured_tokens

    @property
    def planned_rate(self) -> float:
        """Prompt tokens a second to reckon with."""
        rate = self.pace().rate
        return rate if rate < self.paced_rate else self.paced_rate

    @property
    def most_kv_tokens(self) -> float:
        """No less than the cache will ever hold for what is in flight: as if all of it ended at the same moment."""
        grown = 1.35 * self.got_tokens + self.length_share * self.promised_tokens + 16.0 * len(self.running)
        return self.prompt_tokens + grown

    def sent(self, ticket: Ticket, now_s: float) -> None:
        """The engine gets one more."""
        self._begin_step(now_s - SAME_MOMENT_S)
        if not self.unfilled_tokens and self._probe is None:
            self._step_s, self._idle = now_s, True
        self.running[ticket] = None
        self.unfilled_tokens += ticket.uncached_tokens
        self.prompt_tokens += ticket.prompt_tokens
        self.got_tokens += ticket.tokens
        self.promised_tokens += ticket.length.p50 * ticket.sequences
        self.sent_since_state += 1
        if (tpot_s := ticket.targets.tpot_s) is not None:
            self._tpots[tpot_s] += 1

    def adopt(self, ticket: Ticket) -> None:
        """The engine has it already, as far as the ticket says: into the sums of a view that is made anew."""
        self.running[ticket] = None
        self.prompt_tokens += ticket.prompt_tokens
        self.got_tokens += ticket.tokens
        self.promised_tokens += ticket.length.p50 * ticket.sequences
        if ticket.first_token_s is None:
            self.unfilled_tokens += ticket.uncached_tokens
        else:
            self.kv_tokens += ticket.prompt_tokens + ticket.tokens
            self.decoding += ticket.sequences
        if (tpot_s := ticket.targets.tpot_s) is not None:
            self._tpots[tpot_s] += 1
        self._pace = None

    def first_token(self, ticket: Ticket, now_s: float) -> None:
        """Its prompt is done."""
        self._begin_step(now_s)
        if self._probe is not None and self._missed_a_step(self._probe, now_s):
            self._distrust_probe(self.step.given_step_s(0.0, self.kv_tokens, self.decoding))
            self._probe, self._step_s = None, now_s
        self.unfilled_tokens -= ticket.uncached_tokens
        self.filled_tokens += ticket.uncached_tokens
        self._first_s = now_s
        self._done_tokens -= ticket.uncached_tokens
        self._filled_alone(ticket.uncached_tokens, now_s)
        self.kv_tokens += ticket.prompt_tokens
        self.decoding += ticket.sequences
        self._pace = None

    def _filled_alone(self, tokens: int, now_s: float) -> None:
        """Without an answer that runs, prompts' own times tell what steps take: all that is known of embeddings."""
        moment = self._moment
        if moment is not None and now_s - moment.ended_s < SAME_MOMENT_S:
            moment.tokens += tokens
        elif self._probe is None:
            self._end_moment()
            if now_s > self._step_s:
                self._moment = _Moment(self._step_s, now_s, self._idle, tokens)
            self._step_s, self._idle = now_s, False

    def _end_moment(self) -> None:
        """No further first token belongs to it."""
        moment, self._moment = self._moment, None
        if moment is not None and moment.tokens:
            took_s, steps = moment.ended_s - moment.began_s, -(-moment.tokens // self.chunk_tokens)
            if moment.idle:
                self.step.observe_alone(took_s, moment.tokens, steps)
            else:
                self.step.observe(took_s / steps, moment.tokens / steps, self.kv_tokens, 1)

    def tokens(self, ticket: Ticket, tokens_so_far: int, now_s: float) -> None:
        """More of its answer came. One request at a time is the probe whose gaps tell what steps take."""
        if self._loads is None:
            self._begin_step(now_s)
        new = tokens_so_far - ticket.tokens
        last_s, ticket.last_token_s, ticket.tokens = ticket.last_token_s, now_s, tokens_so_far
        self.kv_tokens += new
        self.got_tokens += new
        self._pace = None
        probe = self._probe
        if probe is None:
            self._probe, self._step_s, self._loads = ticket, now_s, None
        elif ticket is probe:
            if last_s is not None and new > 0:
                self._end_step((now_s - last_s) * ticket.sequences / new, now_s)
        elif last_s is not None and last_s - (probe.last_token_s or last_s) > SLOW_PROBE_GAPS * (now_s - last_s):
            # The probe had nothing since well before this answer had two tokens.
            self._distrust_probe((now_s - last_s) * ticket.sequences / new)
            self._probe, self._step_s, self._loads = ticket, now_s, None

    def _missed_a_step(self, probe: Ticket, now_s: float) -> bool:
        """Whether first tokens came at two moments since the probe's last token."""
        probe_s = self._step_s if probe.last_token_s is None else probe.last_token_s
        return probe_s < self._first_s - SAME_MOMENT_S and now_s - self._first_s > SAME_MOMENT_S

    def _distrust_probe(self, gap_s: float) -> None:
        """What it told was its client's pace: the engine's gaps are about `gap_s`."""
        self.step.void(gap_s)
        self.debt_s, self._measured_tokens, self._loads = 0.0, self.filled_tokens, None

    def silent_s(self, now_s: float) -> float:
        """How long no answer has told anything."""
        return now_s - max(self._step_s, self._first_s)

    def _begin_step(self, now_s: float) -> None:
        """Before the first event of a later time than the probe's last: what the engine has in the step that runs."""
        if self._loads is None and now_s > self._step_s:
            self._done_tokens = min(max(self._done_tokens, 0.0), self.unfilled_tokens)
            self._loads = self._step_load()

    def _step_load(self) -> tuple[float, float, float]:
        room = max(self.chunk_tokens - self.decoding, 0)
        return min(self.unfilled_tokens - max(self._done_tokens, 0.0), room), self.kv_tokens, self.decoding

    def _end_step(self, gap_s: float, now_s: float) -> None:
        if self._moment is not None:
            self._end_moment()
        self._measured_tokens = self.filled_tokens
        if self._loads is not None:
            self.step.observe(gap_s, *self._loads)
            self._owe(gap_s)
            self._done_tokens += self._loads[0]
        self._step_s, self._loads = now_s, None

    def _owe(self, gap_s: float) -> None:
        tpot_s = self.tightest_tpot_s
        if tpot_s is None:
            self.debt_s = 0.0
            return
        debt_s = self.debt_s + gap_s - DEBT_SHARE * tpot_s
        self.debt_s = min(max(debt_s, 0.0), MOST_DEBT_TARGETS * tpot_s)

    def gone(self, ticket: Ticket) -> None:
        """It is over, or never came to the engine."""
        del self.running[ticket]
        self.prompt_tokens -= ticket.prompt_tokens
        self.got_tokens -= ticket.tokens
        self.promised_tokens -= ticket.length.p50 * ticket.sequences
        if ticket.first_token_s is None:
            self.unfilled_tokens -= ticket.uncached_tokens
            self._done_tokens = min(self._done_tokens, self.unfilled_tokens)
        else:
            self.kv_tokens -= ticket.prompt_tokens + ticket.tokens
            self.decoding -= ticket.sequences
            self._pace = None
        if (tpot_s := ticket.targets.tpot_s) is not None:
            self._tpots[tpot_s] -= 1
            if not self._tpots[tpot_s]:
                del self._tpots[tpot_s]
        if ticket is self._probe:
            self._probe = None
