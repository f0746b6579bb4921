"""What the scheduler knows of the engine: the requests in flight, and the engine's speed."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from uellm.sidecar.scheduling.estimate import StepEstimate
from uellm.sidecar.scheduling.overrun import Overrun
from uellm.sidecar.scheduling.pace import Pace, pace_of
from uellm.sidecar.scheduling.reported import REPORT_WEIGHT, MeanStep, ReportedSteps
from uellm.sidecar.scheduling.share import EventTokens, Share
from uellm.sidecar.scheduling.types import EngineState, Shows, Ticket
from uellm.sidecar.scheduling.unseen import Unseen
from uellm.step_time import UNCORRECTED, StepFactors, StepTime

# By names of their own: to read an enum's member costs as much as a call.
_TOKENS, _END = Shows.TOKENS, Shows.END

UNKNOWN_CHUNK = 2048
"""Tokens of one step where the engine does not report them: vLLM's default for online serving."""


SAME_MOMENT_S = 1e-3
"""A request sent this soon after the end of a step joins the next step."""

SLOW_PROBE_GAPS = 0.5
MOST_PROBE_GAPS = 8.0
"""A probe that is this far behind another answer's last two tokens, or so many reported gaps behind, has a slow client:
its gaps are not the engine's."""

SPLIT_SHARE = 0.5
"""Of the running sequences, a reported step has at least so many. It had fewer if it was counted more than once."""

LONGEST_REPORT_S = 2.5
"""While the engine's reports come at least so often, no slow client's answer is the probe."""

MEASURING_ANSWERS = 2
"""Of the answers that may be reported in batches, so many are reported token by token: their gaps measure steps. Two,
because one may end at any moment."""

LENGTH_MARGIN = 2.0
MIN_ANSWER_TOKENS = 2000.0
"""Predicted lengths are cut where answers were less than half as long. That takes this many predicted tokens."""


@dataclass(slots=True)
class _Moment:
    """First tokens that came together while no answer was running. They measure the time of their prompts."""

    began_s: float
    ended_s: float
    idle: bool
    """The engine had nothing to do when it got the prompts."""
    tokens: int = 0
    """Tokens of the prompts."""


class EngineView:
    """Sums over the requests in flight. Each event updates them at constant cost."""

    def __init__(self, step: StepEstimate) -> None:
        self.step = step
        self.chunk_tokens = UNKNOWN_CHUNK
        """Tokens of one step."""
        self.state = EngineState(ready=False)
        self.running: dict[Ticket, None] = {}
        self.unfilled_tokens = 0
        """Prompt tokens of requests in flight that are not computed yet, as far as is known."""
        self.kv_tokens = 0
        """Tokens of the decoding requests in the KV cache."""
        self.prompt_tokens = 0
        """Prompt tokens of all requests in flight."""
        self.got_tokens = 0
        """Answer tokens so far of all requests in flight."""
        self.decoding = 0
        self.promised_tokens = 0.0
        """Expected answer tokens of all requests in flight."""
        self.answers = Share()
        """Tokens of answers that ended, as a share of the predicted ones."""
        self.events = EventTokens()
        self.sent_since_state = 0
        self.paced_rate = inf
        """Prompt tokens a second that the TPOT guard allows."""
        self.filled_tokens = 0
        """Prompt tokens that were computed since the start, as far as is known."""
        self.overrun = Overrun()
        self.speedup = 1.0
        """How many times faster than the estimate the engine is assumed to compute prompts. The gate sets it."""
        self.unseen = Unseen()
        self.reported_step: MeanStep | None = None
        """The mean step between the engine's last two reports."""
        self._reported = ReportedSteps()
        self._done_tokens = 0.0
        """Unfilled tokens that were computed by `_step_s`, or by `_progress_s` if that is later."""
        self._progress_s = 0.0
        self._step_s = 0.0
        self._probe: Ticket | None = None
        self._measuring = 0
        """Answers in flight that may be reported in batches and are not."""
        self._moment: _Moment | None = None
        self._first_s = 0.0
        """When the latest first token came."""
        self._idle = True
        """Whether the engine had nothing to do when it got its current prompts."""
        self._measured_s = 0.0
        """When the engine last reported the times of its steps where nothing else showed them."""
        self._measured_tokens = 0
        """Filled tokens of steps whose time was measured."""
        self._loads: tuple[float, float, float] | None = None
        self._pace: Pace | None = None
        """Cached value. None: something has changed since it was computed."""

    @property
    def tightest_tpot_s(self) -> float | None:
        """The tightest TPOT target in flight."""
        return self.overrun.tightest_s

    def on_engine_state(self, state: EngineState, now_s: float) -> None:
        """Take over a newer reading of the engine's metrics."""
        self.state = state
        self.chunk_tokens = state.max_num_batched_tokens or UNKNOWN_CHUNK
        self.sent_since_state = 0
        mean = self._reported.since_last(state.steps)
        # Several API servers each count the steps of their own requests alone.
        split = mean is not None and state.running is not None and mean.sequences < SPLIT_SHARE * state.running
        self.reported_step = None if split else mean
        if self.reported_step is not None and self.unseen.alone:
            self._learn_from(self.reported_step, now_s)
        self._pace = None

    def _learn_from(self, mean: MeanStep, now_s: float) -> None:
        """Learn from the engine's own account of its steps."""
        state, probe = self.state, self._probe
        if probe is not None and now_s - (probe.last_token_s or now_s) > MOST_PROBE_GAPS * mean.gap_s:
            self._distrust_probe(mean.gap_s)
            self._probe, self._step_s = None, now_s
        held = state.kv_tokens * state.kv_used_share if state.kv_tokens and state.kv_used_share else self.kv_tokens
        for _ in range(REPORT_WEIGHT):
            self.step.observe(mean.gap_s, mean.prompt_tokens / mean.tokens, held, mean.sequences)
            self.overrun.take(mean.gap_s)
        self._measured_s, self._measured_tokens = now_s, self.filled_tokens + self.unfilled_tokens

    def on_running(self, sequences: int, now_s: float) -> None:
        """The engine reports how many sequences it runs."""
        if self.unseen.in_flight:
            filled, begun_tokens = self.unseen.of_first(self.running, sequences, self.chunk_tokens)
            self._fill(filled, now_s)
            self._progress(now_s)
            self._done_tokens = min(self._done_tokens, begun_tokens)
        self.unseen.on_report()

    def on_restart(self) -> None:
        """A new engine process may be faster or slower. Keep the estimate, but let the next steps change it quickly."""
        self.step.forget_observations()
        self.overrun.seconds = 0.0
        self.events = EventTokens()

    def reset_step_model(self, model: StepTime, factors: StepFactors = UNCORRECTED) -> None:
        """Learn the step times again, starting from this model and these factors."""
        self.step.reset(model, factors)
        self._pace = None

    def pace(self) -> Pace:
        """The engine's speed with its current requests."""
        pace = self._pace
        if pace is None:
            chunk = max(self.chunk_tokens - self.decoding, 1)
            pace = self._pace = pace_of(self.step, chunk, self.kv_tokens, self.decoding)
        return pace

    def backlog_tokens(self, now_s: float) -> float:
        """Prompt tokens that the engine has probably still to compute.

        This is an estimate, because the engine does not report its progress within a prompt.
        """
        unfilled = self.unfilled_tokens
        if not unfilled:
            return 0.0
        speedup = self.speedup
        spent_s = now_s - max(self._step_s, self._progress_s)
        now_done = speedup * self.pace().rate * spent_s if spent_s > 0.0 else 0.0
        if self._probe is not None and not self._probe.batched:
            # A step computes only what it began with. Later prompts wait for the next step.
            load = self._step_load()[0] if self._loads is None else self._loads[0]
            now_done = min(now_done, speedup * load)
        left = unfilled - self._done_tokens - now_done
        return left if left > 0.0 else 0.0

    @property
    def newest(self) -> Ticket | None:
        """The request in flight that was sent last."""
        return next(reversed(self.running), None)

    @property
    def newest_tokens(self) -> int:
        """Its prompt tokens."""
        newest = self.newest
        return 0 if newest is None else newest.uncached_tokens

    @property
    def computes_prompts_alone(self) -> bool:
        """Whether the engine has embeddings and nothing else."""
        newest = self.newest
        return newest is not None and newest.shows is Shows.PROMPT and not self.decoding

    @property
    def away_tokens(self) -> float:
        """Prompt tokens of the requests that the engine has not got yet."""
        sequences = sum(ticket.sequences for ticket in self.running)
        got = min(((self.state.running or 0) + self.state.waiting) / sequences, 1.0) if sequences else 1.0
        return (1.0 - got) * self.unfilled_tokens

    @property
    def shows_gaps(self) -> bool:
        """Whether answers run whose gaps are seen or reported."""
        return self.decoding > 0 and (self.state.running is not None or self.unseen.in_flight < len(self.running))

    @property
    def length_share(self) -> float:
        """Share of the predicted lengths to plan with: below 1 once answers turn out far shorter."""
        answers = self.answers
        if answers.of_tokens < MIN_ANSWER_TOKENS:
            return 1.0
        return min(1.0, LENGTH_MARGIN * answers.value)

    @property
    def unmeasured_tokens(self) -> int:
        """Prompt tokens that were sent and are not yet part of a measured gap between tokens."""
        return self.unfilled_tokens + self.filled_tokens - self._measured_tokens

    @property
    def planned_rate(self) -> float:
        """Prompt tokens a second to plan with."""
        rate = self.pace().rate
        return rate if rate < self.paced_rate else self.paced_rate

    @property
    def most_kv_tokens(self) -> float:
        """Upper bound of the cache's tokens for all requests in flight: as if all of them ended at the same moment."""
        grown = 1.35 * self.got_tokens + self.length_share * self.promised_tokens + 16.0 * len(self.running)
        return self.prompt_tokens + grown

    def on_dispatch(self, ticket: Ticket, now_s: float) -> None:
        """A request is sent to the engine."""
        if self._loads is None and now_s - SAME_MOMENT_S > self._step_s:
            self._begin_step()
        if not self.unfilled_tokens and self._probe is None:
            self._step_s, self._idle = now_s, not self.unseen.in_flight
        elif self.unseen.in_flight:
            self._progress(now_s)
        self.unseen.on_dispatch(ticket)
        ticket.batched = ticket.may_batch and self._measuring >= MEASURING_ANSWERS
        self._measuring += ticket.may_batch and not ticket.batched
        self.running[ticket] = None
        self.unfilled_tokens += ticket.uncached_tokens
        self.prompt_tokens += ticket.prompt_tokens
        self.got_tokens += ticket.tokens
        ticket.promised_tokens = ticket.length.p50 * ticket.sequences
        self.promised_tokens += ticket.promised_tokens
        self.sent_since_state += 1
        self.overrun.add(ticket)

    def correct_prompt(self, ticket: Ticket, tokens: int) -> None:
        """The engine has counted the prompt of a running request."""
        new = tokens - ticket.prompt_tokens
        ticket.prompt_tokens = tokens
        self.prompt_tokens += new
        if ticket.filled:
            self.kv_tokens += new
            self._pace = None

    def adopt(self, ticket: Ticket) -> None:
        """Add a request that the engine already has to the sums of a new view."""
        self._measuring += ticket.may_batch and not ticket.batched
        self.running[ticket] = None
        self.prompt_tokens += ticket.prompt_tokens
        self.got_tokens += ticket.tokens
        ticket.promised_tokens = ticket.length.p50 * ticket.sequences
        self.promised_tokens += ticket.promised_tokens
        ticket.filled |= ticket.first_token_s is not None
        self.unseen.on_dispatch(ticket)
        if not ticket.filled:
            self.unfilled_tokens += ticket.uncached_tokens
        else:
            self.kv_tokens += ticket.prompt_tokens + ticket.tokens
            self.decoding += ticket.sequences
        self.overrun.add(ticket)
        self._pace = None

    def on_first_token(self, ticket: Ticket, now_s: float) -> None:
        """The engine has finished the prompt of a request."""
        if self._loads is None and now_s > self._step_s:
            self._begin_step()
        # Ends that were computed in one step may be read at different moments: they do not show a missed step.
        if ticket.shows is _TOKENS or self._probe is None:
            if self._probe is not None and now_s - self._first_s > SAME_MOMENT_S:
                self._look_at_probe(now_s)
            self._first_s = now_s
        if self.unseen.in_flight:
            self._fill(self.unseen.before(ticket), now_s)
        if not ticket.filled:
            self._count_filled(ticket)
            if self._probe is None or self._moment is not None:
                self._filled_alone(ticket.uncached_tokens, now_s)

    def on_unseen_end(self, ticket: Ticket, now_s: float) -> None:
        """An answer ended of which nothing was seen before. It took its prompt's time, and unknown time for its tokens.

        So it measures nothing. But its prompt is computed, and those of the requests that were sent before it.
        """
        if self._loads is None and now_s > self._step_s:
            self._begin_step()
        filled = self.unseen.before(ticket)
        self._fill(filled if ticket.filled else [*filled, ticket], now_s)

    def _fill(self, tickets: list[Ticket], now_s: float) -> None:
        """The engine has finished these prompts, sometime before `now_s`."""
        if tickets:
            self._progress(now_s)
            for ticket in tickets:
                self._count_filled(ticket)
            self._done_tokens = max(self._done_tokens, 0.0)

    def _count_filled(self, ticket: Ticket) -> None:
        ticket.filled = True
        self.unseen.on_filled(ticket)
        self.unfilled_tokens -= ticket.uncached_tokens
        self.filled_tokens += ticket.uncached_tokens
        self._done_tokens -= ticket.uncached_tokens
        self.kv_tokens += ticket.prompt_tokens
        self.decoding += ticket.sequences
        self._pace = None

    def _progress(self, now_s: float) -> None:
        """Record what the engine has probably computed by now where no answer measures its steps."""
        if self._probe is None:
            self._done_tokens = self.unfilled_tokens - self.backlog_tokens(now_s)
            self._progress_s = now_s

    def _filled_alone(self, tokens: int, now_s: float) -> None:
        """Measure step times by prompts while no answer runs."""
        moment = self._moment
        if moment is not None and now_s - moment.ended_s < SAME_MOMENT_S:
            moment.tokens += tokens
        elif self._probe is None:
            if self._moment is not None:
                self._end_moment()
            # Of requests that are not seen nobody knows what they took of this time.
            if now_s > self._step_s and not self.unseen.in_flight:
                self._moment = _Moment(self._step_s, now_s, self._idle, tokens)
            self._step_s, self._idle = now_s, False

    def _end_moment(self) -> None:
        """Finish the current moment and learn from it."""
        moment, self._moment = self._moment, None
        if moment is not None and moment.tokens:
            took_s, steps = moment.ended_s - moment.began_s, -(-moment.tokens // self.chunk_tokens)
            if moment.idle:
                self.step.observe_alone(took_s, moment.tokens, steps)
            else:
                self.step.observe(took_s / steps, moment.tokens / steps, self.kv_tokens, 1)

    def on_tokens(self, ticket: Ticket, tokens_so_far: int, now_s: float) -> None:
        """More tokens of an answer came. The gaps of one request at a time, the probe, measure the steps.

        An answer that does not measure steps is the probe only where none does.
        """
        if self._loads is None and now_s > self._step_s:
            self._begin_step()
        last_s, ticket.last_token_s = ticket.last_token_s, now_s
        new = self.count(ticket, tokens_so_far)
        probe = self._probe
        if ticket is probe:
            if last_s is not None and new > 0:
                tokens = new / ticket.sequences
                if ticket.measures:
                    tokens = self._tokens_of_events(tokens)
                self._end_step((now_s - last_s) / tokens, now_s, tokens)
        elif probe is None:
            if not ticket.distrusted or now_s - self._measured_s >= LONGEST_REPORT_S:
                self._begin_probe(ticket, now_s)
        elif not probe.measures and ticket.measures:
            self._begin_probe(ticket, now_s)
        elif last_s is not None and last_s - (probe.last_token_s or last_s) > SLOW_PROBE_GAPS * (now_s - last_s):
            # The probe had no token since well before the last two of this answer.
            self._distrust_probe((now_s - last_s) * ticket.sequences / new)
            self._begin_probe(ticket, now_s)

    def _begin_probe(self, ticket: Ticket, now_s: float) -> None:
        self._probe, self._step_s, self._loads = ticket, now_s, None

    def _tokens_of_events(self, tokens: float) -> float:
        """What was counted as so many tokens, before rounding."""
        each = self.events.each
        if each == 1.0:
            return tokens
        events = round(tokens / each)
        return events * each if events > 1 else each

    def count(self, ticket: Ticket, tokens_so_far: int) -> int:
        """Set the tokens of an answer. Returns how many are new."""
        new, ticket.tokens = tokens_so_far - ticket.tokens, tokens_so_far
        self.kv_tokens += new
        self.got_tokens += new
        self._pace = None
        return new

    def _look_at_probe(self, now_s: float) -> None:
        """Choose another probe if this one has missed a step. Called at the first of the first tokens of a moment."""
        probe = self._probe
        if probe is not None and not probe.batched and self._missed_a_step(probe):
            self._distrust_probe(self.step.initial_step_s(0.0, self.kv_tokens, self.decoding))
            self._probe, self._step_s = None, now_s

    def _missed_a_step(self, probe: Ticket) -> bool:
        """Whether first tokens came since the probe's last token, and before those of this moment."""
        probe_s = self._step_s if probe.last_token_s is None else probe.last_token_s
        return probe_s < self._first_s - SAME_MOMENT_S

    def _distrust_probe(self, gap_s: float) -> None:
        """Discard the probe's gaps, which show its client's pace. The engine's gaps are about `gap_s`."""
        if self._probe is not None:
            self._probe.distrusted = True
        self.step.discard_recent_gaps(gap_s)
        self.overrun.seconds, self._measured_tokens, self._loads = 0.0, self.filled_tokens, None

    def silent_s(self, now_s: float) -> float:
        """Seconds since an answer last had a token, or the engine reported its steps."""
        return now_s - max(self._step_s, self._first_s, self._measured_s)

    def _begin_step(self) -> None:
        """Record the load of the running step, before the first event after the probe's last token."""
        done, unfilled = self._done_tokens, self.unfilled_tokens
        if done < 0.0:
            done = 0.0
        self._done_tokens = unfilled if unfilled < done else done
        self._loads = self._step_load()

    def _step_load(self) -> tuple[float, float, float]:
        left, room = float(self.unfilled_tokens), self.chunk_tokens - self.decoding
        if self._done_tokens > 0.0:
            left -= self._done_tokens
        if room < 0:
            room = 0
        return room if room < left else left, self.kv_tokens, self.decoding

    def _end_step(self, gap_s: float, now_s: float, tokens: float) -> None:
        """Learn from the time that each of the probe's new tokens took. The step times learned are those of a token."""
        if self._moment is not None:
            self._end_moment()
        filled, self._measured_tokens = self.filled_tokens - self._measured_tokens, self.filled_tokens
        if self._loads is not None:
            prompt_tokens, kv_tokens, decoding = self._loads
            if self._probe is not None and self._probe.batched:
                # Of its many steps only the prompts that were finished in them are known.
                self._done_tokens += prompt_tokens * tokens
                prompt_tokens = float(max(filled, 0))
            else:
                self._done_tokens += prompt_tokens
            self.step.observe(gap_s, prompt_tokens / tokens, kv_tokens, decoding)
            self.overrun.take(gap_s)
        self._step_s, self._loads = now_s, None

    def remove(self, ticket: Ticket) -> None:
        """Remove a request that has ended or did not reach the engine."""
        del self.running[ticket]
        self._measuring -= ticket.may_batch and not ticket.batched
        self.prompt_tokens -= ticket.prompt_tokens
        self.got_tokens -= ticket.tokens
        self.promised_tokens -= ticket.promised_tokens
        if ticket.shows is _END:
            self.unseen.remove(ticket)
        if not ticket.filled:
            self.unfilled_tokens -= ticket.uncached_tokens
            self._done_tokens = min(self._done_tokens, self.unfilled_tokens)
        else:
            self.kv_tokens -= ticket.prompt_tokens + ticket.tokens
            self.decoding -= ticket.sequences
            self._pace = None
        if ticket.targets.tpot_s is not None:
            self.overrun.remove(ticket)
        if ticket is self._probe:
            self._probe = None
