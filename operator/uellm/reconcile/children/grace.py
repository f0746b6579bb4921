"""How long a pod may take to end, and how that time is shared out. Pure.

grace period    the template's own, else what the longest end-to-end target needs, else 90 s
drain           requests in flight are waited for, after a few seconds in which stray clients are still served
the rest        the engine's own shutdown, then the sidecar's
"""

from __future__ import annotations

import math
from typing import NamedTuple

from uellm.api import LLMService
from uellm.pod_interface import LAME_DUCK_S

SHORTEST_S = 90
"""Without targets: a minute for requests in flight, and the rest for the engine's own shutdown."""
LONGEST_S = 3600
AFTER_DRAIN_S = 30
"""The engine's --shutdown-timeout of 20 s, and a margin."""


class GracePeriod(NamedTuple):
    """In seconds."""

    whole_s: int
    """terminationGracePeriodSeconds."""
    drain_s: int
    """Of that, how long requests in flight are waited for."""


def grace_period(service: LLMService) -> GracePeriod:
    """The grace period of a service's pods."""
    own = (service.spec.template.spec or {}).get("terminationGracePeriodSeconds")
    whole_s = own if isinstance(own, int) and not isinstance(own, bool) and own >= 0 else _needed_s(service)
    # A short period is halved: something has to be left for the engine.
    return GracePeriod(whole_s, max(whole_s - AFTER_DRAIN_S, whole_s // 2))


def _needed_s(service: LLMService) -> int:
    longest_s = max((each.e2e_s or 0.0 for each in service.spec.slo.classes), default=0.0)
    return min(max(SHORTEST_S, math.ceil(longest_s) + math.ceil(LAME_DUCK_S) + AFTER_DRAIN_S), LONGEST_S)
