"""What a replica would do for a request, and what the request would do to the others there.

The prediction follows the sidecar: it serves by deadline, computes prompts at the rate of the engine's full steps, and
decodes all running requests together. Measured gaps between tokens and the rate that the TPOT guard allows are not
used: they show what was there a while ago, so a replica that had much to do once would get nothing for long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, inf, log, sqrt

from uellm.api.replica_load import NOTHING, SLACK_BOUNDS_S, SPANS, WaitingLoad
from uellm.routing.books import ReplicaBooks
from uellm.routing.request import RoutedRequest
from uellm.step_time import StepTime

UNKNOWN_STEP = StepTime(
    floor_s=6e-3, per_prefill_token_s=50e-6, per_kv_token_s=50e-9, per_sequence_s=15e-6, overhead_s=0.5e-3
)
"""About an 8B model on one current GPU: where no replica has told its own."""

UNKNOWN_CHUNK = 2048
"""Tokens of one step where they are not reported: vLLM's default for online serving."""

LENGTH_SPREAD = 0.8
"""Standard deviation of the logarithm of an answer's length around its prediction, as of the sidecar's predictor."""

WAIT_SPREAD, WAIT_NOISE_S = 0.3, 0.1
"""Standard deviation of a predicted wait: as a share of it, and at least in seconds."""

PROMPTS_BETWEEN = 1.3
"""Seconds between two tokens, as a multiple of a step without prompts: later prompts come between."""

PACE_SPREAD = 0.15
"""Standard deviation of a predicted time for each token, as a share of it."""

SAFE_LENGTH = 2.0
"""A first token is due early enough for an answer that is this many times as long as predicted: about its P80."""

SHORTEST_S = 1e-6
"""No step is shorter; a replica may report times of 0."""

_NO_SPANS: tuple[WaitingLoad, ...] = (NOTHING,) * SPANS
_ROOT_2 = sqrt(2.0)


@dataclass(frozen=True, slots=True)
class ReplicaOutlook:
    """The expected result of sending a request to one replica."""

    risk: float
    """Probability that the request misses a target, plus the misses that it adds among the waiting ones."""
    latency_s: float
    """Time to the end of its answer."""
    work_s: float
    """Time of an engine that it takes, at the reference speed: an hour of a slow replica is worth less."""
    others: int
    """Requests that are there already."""


def outlook(
    request: RoutedRequest, replica: ReplicaBooks, now_s: float, reference: StepTime = UNKNOWN_STEP
) -> ReplicaOutlook:
    """Predict. `reference`: the step time that work is counted by, and that of a replica that has not told its own."""
    return _Prediction(request, replica, now_s, reference).outlook()


def reference_step(replicas: Sequence[ReplicaBooks]) -> StepTime:
    """The step time of the fastest replica."""
    steps = [replica.load.step for replica in replicas if replica.load is not None and replica.load.step is not None]
    return min(steps, key=lambda step: step.step_s(UNKNOWN_CHUNK, 0, 1), default=UNKNOWN_STEP)


class _Prediction:
    """The replica's state as the report and the router's books since then tell it."""

    def __init__(self, request: RoutedRequest, replica: ReplicaBooks, now_s: float, reference: StepTime) -> None:
        load = replica.fresh(now_s)
        self.request = request
        self.step = (replica.load.step if replica.load is not None else None) or reference
        self.reference = reference
        self.uncached = replica.uncached_tokens(request)
        since = replica.since_report()
        self.age_s = 0.0
        self.queued = 0
        self.spans = _NO_SPANS
        self.chunk = UNKNOWN_CHUNK
        own = len(replica.outstanding)
        self.own_prompts = replica.prompt_tokens
        if load is None:
            self.unfilled, self.since = float(replica.unfilled_tokens), 0.0
            self.decoding = replica.began
            self.kv_tokens = replica.kv_tokens
            self.requests = own
            self.pending = self.unfilled
            return
        self.age_s = now_s - replica.reported_s
        self.spans = load.waiting
        self.chunk = load.chunk_tokens or UNKNOWN_CHUNK
        self.decoding = max(load.decoding, replica.began)
        self.kv_tokens = max(load.kv_tokens, replica.kv_tokens)
        self.queued = replica.queued
        self.requests = max(load.sequences + replica.queued + len(since), own)
        self.unfilled = load.unfilled_tokens
        self.since = float(sum(sent.uncached_tokens for sent in since if not sent.began))
        self.pending = self.unfilled + replica.queued_tokens + self.since
        # What this router has sent there and has seen no first token of is there, whatever the report says.
        reported = self.unfilled + replica.queued_tokens
        self.since += max(replica.unfilled_tokens - self.since - reported - self.chunk, 0.0)

    def outlook(self) -> ReplicaOutlook:
        request, step = self.request, self.step
        context = request.prompt_tokens + 0.5 * request.output_tokens
        prompt_s = step.per_prefill_token_s * self.uncached
        each_s = self.reference.per_sequence_s + self.reference.per_kv_token_s * context
        work_s = self.reference.per_prefill_token_s * self.uncached + request.output_tokens * each_s
        gap_s = self._gap_s(context)
        rate = self._rate()
        due_s = self._due_s(gap_s)
        ahead = max(self.unfilled + self._tokens_due_by(due_s) - rate * self.age_s, 0.0) + self.since
        first_s = (ahead + self.uncached) / rate + step.step_s(0, self.kv_tokens, self.decoding)
        risk = self._risk(first_s, gap_s) + self._harm(due_s, ahead, prompt_s, rate)
        return ReplicaOutlook(risk, first_s + gap_s * request.output_tokens, work_s, self.requests)

    def _gap_s(self, context: float) -> float:
        """Seconds between two tokens once this request decodes too."""
        step = self.step
        kv_tokens = max(self.kv_tokens + self.pending, self.own_prompts)
        then_s = max(step.step_s(0, kv_tokens + context, self.requests + 1), SHORTEST_S)
        return PROMPTS_BETWEEN * then_s

    def _rate(self) -> float:
        """Prompt tokens a second."""
        room = max(self.chunk - self.decoding, 1)
        step_s = max(self.step.step_s(room, self.kv_tokens, self.decoding), SHORTEST_S)
        return room / step_s

    def _due_s(self, gap_s: float) -> float:
        """Seconds until the first token is due; infinite without a target."""
        request = self.request
        due_s = inf if request.ttft_s is None else request.ttft_s
        if request.e2e_s is not None:
            due_s = min(due_s, request.e2e_s - SAFE_LENGTH * request.output_tokens * gap_s)
        return due_s

    def _tokens_due_by(self, due_s: float) -> float:
        """Waiting prompt tokens that the sidecar serves first."""
        if not self.queued:
            return 0.0
        tokens = 0.0
        for bound_s, span in zip(SLACK_BOUNDS_S, self.spans, strict=False):
            if bound_s - self.age_s > due_s:
                return tokens
            tokens += span.prompt_tokens
        return tokens + (self.spans[-1].prompt_tokens if due_s == inf else 0)

    def _risk(self, first_s: float, gap_s: float) -> float:
        """Probability that the request misses a target."""
        request, met = self.request, 1.0
        if request.ttft_s is not None:
            met = _in_time(first_s, request.ttft_s)
        if request.tpot_s is not None and request.output_tokens > 1:
            met *= _normal((request.tpot_s / gap_s - 1.0) / PACE_SPREAD)
        if request.e2e_s is not None:
            left_s = request.e2e_s - first_s
            if left_s <= 0.0:
                return 1.0
            met *= _normal(log(left_s / (gap_s * max(request.output_tokens, 1.0))) / LENGTH_SPREAD)
        return 1.0 - met

    def _harm(self, due_s: float, ahead: float, prompt_s: float, rate: float) -> float:
        """Further misses among the waiting requests that are due later."""
        if not self.queued:
            return 0.0
        harm, tokens, begins_s = 0.0, ahead, -inf
        for bound_s, span in zip((*SLACK_BOUNDS_S, inf), self.spans, strict=True):
            slack_s = bound_s - self.age_s
            if span.requests and slack_s > due_s and slack_s < inf:
                tokens += span.prompt_tokens
                middle_s = slack_s if begins_s == -inf else 0.5 * (begins_s + slack_s)
                wait_s = tokens / rate
                harm += span.requests * (_in_time(wait_s, middle_s) - _in_time(wait_s + prompt_s, middle_s))
            begins_s = slack_s
        return harm


def _in_time(wait_s: float, within_s: float) -> float:
    """Probability that a predicted wait is over in time."""
    return _normal((within_s - wait_s) / (WAIT_SPREAD * wait_s + WAIT_NOISE_S))


def _normal(value: float) -> float:
    return 0.5 + 0.5 * erf(value / _ROOT_2)
