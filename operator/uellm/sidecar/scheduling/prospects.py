"""What a waiting request needs, and its chance: deadline of the first token, engine seconds, probability, value."""

from __future__ import annotations

from dataclasses import dataclass
from math import erf, exp, inf, log, sqrt

from uellm.sidecar.scheduling.engineview import EngineView
from uellm.sidecar.scheduling.types import FAR_DEADLINE_S, Ticket

P80_SIGMAS = 0.8416
"""Where a normal distribution has 80 % below it."""

SAFE_SIGMAS = 2.0
"""The length that an end-to-end deadline is planned for, in standard deviations of the prediction: being early costs
nothing but a place in the order; being late costs the request."""

OPTIMISTIC_SIGMAS = -1.2816
"""P10: a request that is late even with so short an answer has no chance."""

PRIORITY_VALUE = 1e6
"""A step of the class's priority is worth more than any density: among those that cannot all be on time, the higher
priority goes first."""

MIN_SIGMA = 0.05


@dataclass(frozen=True, slots=True)
class Prospect:
    """`deadline_s`: for the end of the prompt's work; `first_s`: that work's engine seconds; `density`: chance of being
    on time per engine second, 0 where there is none; `whole_s`: engine seconds of the whole request."""

    deadline_s: float
    first_s: float
    density: float
    whole_s: float


def spread(ticket: Ticket) -> float:
    """Standard deviation of the logarithm of its length."""
    lengths = ticket.length
    return max(log(max(lengths.p80 / max(lengths.p50, 1.0), 1.0)) / P80_SIGMAS, MIN_SIGMA)


def prospect(ticket: Ticket, view: EngineView, rate: float, now_s: float) -> Prospect:
    """The prospects of a request that the engine would begin at `now_s`; `rate`: prompt tokens a second."""
    targets, arrival_s = ticket.targets, ticket.arrival_s
    first_s = ticket.uncached_tokens / rate
    step_s = view.full_step_s
    earliest_s = now_s + first_s + step_s
    deadline_s, chance = inf, 1.0
    if targets.ttft_s is not None:
        deadline_s = arrival_s + targets.ttft_s - step_s
    if targets.e2e_s is not None:
        end_s, gap_s, median = arrival_s + targets.e2e_s, view.step.gap_s, max(ticket.length.p50, 1.0)
        sigma = spread(ticket)
        room = (end_s - earliest_s) / gap_s
        chance = 0.5 + 0.5 * erf(log(room / median) / sigma / sqrt(2.0)) if room > 0 else 0.0
        safe_s = end_s - median * exp(SAFE_SIGMAS * sigma) * gap_s - step_s
        deadline_s = min(deadline_s, max(safe_s, earliest_s + step_s))
    if deadline_s == inf:
        deadline_s = max(arrival_s + FAR_DEADLINE_S, earliest_s + step_s)
    if now_s + first_s > deadline_s:
        chance = 0.0
    whole_s = view.step.work_s(ticket.prompt_tokens, ticket.uncached_tokens, ticket.length.p50 * ticket.sequences)
    return Prospect(deadline_s, first_s, chance / max(whole_s, 1e-6), whole_s)


def hopeless_s(ticket: Ticket, view: EngineView) -> float:
    """From when on it would be late even with a short answer."""
    targets, arrival_s = ticket.targets, ticket.arrival_s
    first_s = ticket.uncached_tokens / view.prefill_rate()
    at_s = inf if targets.ttft_s is None else arrival_s + targets.ttft_s
    if targets.e2e_s is not None:
        short = ticket.length.p50 * exp(OPTIMISTIC_SIGMAS * spread(ticket))
        at_s = min(at_s, arrival_s + targets.e2e_s - short * view.step.gap_s)
    return at_s - first_s


def first_token_deadline_s(ticket: Ticket, view: EngineView) -> float:
    """`min(arrival + TTFT, arrival + E2E - P80 length * gap)`: by when the first token must be there. Fixed for EDF."""
    targets = ticket.targets
    after_s = inf if targets.ttft_s is None else targets.ttft_s
    if targets.e2e_s is not None:
        after_s = min(after_s, targets.e2e_s - ticket.length.p80 * view.step.gap_s)
    return ticket.arrival_s + (FAR_DEADLINE_S if after_s == inf else after_s)
