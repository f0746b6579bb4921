"""How long a pod may take to end, and how that time is shared out. Pure.

grace period    the template's own, else what the longest answer may take, and at least 90 s
drain           requests in flight are waited for, after a few seconds in which stray clients are still served
the rest        the engine's own shutdown, then the sidecar's

A pod without requests ends within seconds, whatever its grace period is. All of it belongs to the revision, so it is
made of the spec and the plan, and never of what was measured: another grace period would be another pod.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from uellm.api import LLMService
from uellm.api.slo import ServiceClass
from uellm.pod_interface import ENGINE_ENDS_IN_S, LAME_DUCK_S
from uellm.reconcile.rendered_plan import RenderedPlan

SHORTEST_S = 90
"""A minute for requests in flight, and the rest for the engine's own shutdown."""
LONGEST_ASSUMED_S = 600
"""Where no `e2e` target says how long an answer takes. The Cluster Autoscaler waits no longer by default."""
LONGEST_S = 3600


class GracePeriod(NamedTuple):
    """In seconds."""

    whole_s: int
    """terminationGracePeriodSeconds."""
    drain_s: int
    """Of that, how long requests in flight are waited for."""


def grace_period(service: LLMService, plan: RenderedPlan) -> GracePeriod:
    """The grace period of a service's pods."""
    own = (service.spec.template.spec or {}).get("terminationGracePeriodSeconds")
    whole_s = own if isinstance(own, int) and not isinstance(own, bool) and own >= 0 else _needed_s(service, plan)
    # A short period is halved: something has to be left for the engine.
    return GracePeriod(whole_s, max(whole_s - ENGINE_ENDS_IN_S, whole_s // 2))


def _needed_s(service: LLMService, plan: RenderedPlan) -> int:
    return max(SHORTEST_S, *(_needed_by(each, plan) for each in service.spec.slo.effective_classes))


def _needed_by(each: ServiceClass, plan: RenderedPlan) -> int:
    """The grace period that the longest answer of a class needs."""
    if each.e2e_s is not None:
        return min(_with_rest(each.e2e_s), LONGEST_S)
    if not plan.answers_in_tokens:
        return SHORTEST_S
    if each.tpot_s is None:
        return LONGEST_ASSUMED_S
    return min(_with_rest((each.ttft_s or 0.0) + plan.max_model_len * each.tpot_s), LONGEST_ASSUMED_S)


def _with_rest(answer_s: float) -> int:
    return math.ceil(answer_s) + math.ceil(LAME_DUCK_S) + ENGINE_ENDS_IN_S
