"""The need and the prospect of a waiting request: deadline, engine seconds, and chance of being on time."""

from __future__ import annotations

from math import erf, exp, inf, log, sqrt

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.estimate import StepEstimate
from uellm.sidecar.scheduling.pace import Pace
from uellm.sidecar.scheduling.types import FAR_DEADLINE_S, Need, Ticket

P80_SIGMAS = 0.8416
"""The 80th percentile of a standard normal distribution."""

SAFE_SIGMAS = 2.0
"""Length that an end-to-end deadline is planned for, in standard deviations above the median. Being early costs only a
place in the order; being late costs the request."""

OPTIMISTIC_SIGMAS = -1.2816
"""P10 of the length: a request that is late even with so short an answer is hopeless."""

PRIORITY_VALUE = 1e6
"""One level of priority is worth more than any density. If not all can be on time, the higher priority goes first."""

MIN_SIGMA = 0.05

ROOT_2 = sqrt(2.0)


Prospect = tuple[float, float, float, float]
"""Deadline of the prompt; engine seconds of the prompt; density, the chance of being on time for each engine second, 0
if there is none; engine seconds of the whole request."""


def need_of(ticket: Ticket, step: StepEstimate) -> Need:
    """The need of a request by its current prediction and the step model."""
    targets, arrival_s, length = ticket.targets, ticket.arrival_s, ticket.length
    p50 = length.p50
    median = max(p50, 1.0)
    spread = max(log(max(length.p80 / median, 1.0)) / P80_SIGMAS, MIN_SIGMA)
    # Positional arguments, in the order of `Need`, because this runs for every request.
    return Need(
        inf if targets.ttft_s is None else arrival_s + targets.ttft_s,
        inf if targets.e2e_s is None else arrival_s + targets.e2e_s,
        spread,
        median,
        median * exp(SAFE_SIGMAS * spread),
        p50 * exp(OPTIMISTIC_SIGMAS * spread),
        step.answer_s(ticket.prompt_tokens, p50 * ticket.sequences),
    )


def whole_s(ticket: Ticket, need: Need, pace: Pace) -> float:
    """Engine seconds of the whole request."""
    return pace.prefill_token_s * ticket.uncached_tokens + pace.decode_factor * need.decode_s


def prospect(ticket: Ticket, need: Need, pace: Pace, planned_rate: float, now_s: float) -> Prospect:
    """The prospect of a request that the engine begins at `now_s`, at `planned_rate` prompt tokens a second."""
    step_s, gap_s = pace.step_s, pace.gap_s
    first_by_s, end_by_s, spread, median, safe, _, _ = need
    first_s = ticket.uncached_tokens / planned_rate
    earliest_s = now_s + first_s + step_s
    deadline_s, chance = first_by_s - step_s, 1.0
    if end_by_s != inf:
        room = (end_by_s - earliest_s) / gap_s
        chance = 0.5 + 0.5 * erf(log(room / median) / spread / ROOT_2) if room > 0 else 0.0
        deadline_s = min(deadline_s, max(end_by_s - safe * gap_s - step_s, earliest_s + step_s))
    elif deadline_s == inf:
        deadline_s = max(ticket.arrival_s + FAR_DEADLINE_S, earliest_s + step_s)
    work_s = whole_s(ticket, need, pace)
    if now_s + first_s > deadline_s:
        return deadline_s, first_s, 0.0, work_s
    return deadline_s, first_s, chance / (work_s if work_s > 1e-6 else 1e-6), work_s


def hopeless_s(ticket: Ticket, need: Need, pace: Pace) -> float:
    """The time from which a request would be late even with a short answer."""
    at_s = need.first_by_s
    if need.end_by_s != inf:
        at_s = min(at_s, need.end_by_s - need.short * pace.optimistic_gap_s)
    return at_s - ticket.uncached_tokens / pace.optimistic_rate


def first_token_deadline_s(ticket: Ticket, view: EngineView) -> float:
    """When the first token is due: `min(arrival + TTFT, arrival + E2E - P80 length * gap)`. EDF uses it unchanged."""
    targets = ticket.targets
    after_s = inf if targets.ttft_s is None else targets.ttft_s
    if targets.e2e_s is not None:
        after_s = min(after_s, targets.e2e_s - ticket.length.p80 * view.step.gap_s)
    return ticket.arrival_s + (FAR_DEADLINE_S if after_s == inf else after_s)
