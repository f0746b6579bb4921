"""Whether a better plan may take the place of one that works. Pure; the time is an argument."""

from __future__ import annotations

from datetime import datetime

from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.times import moment

COOLDOWN_S = 1800
"""The shortest time between two replacements of a plan that works: each loads the model anew."""


def may_improve(observed: Observed, now: datetime) -> bool:
    """True where no pod would have to be replaced, or the service asks for it and the last revision is old enough."""
    deployment = observed.deployment
    if deployment is not None and deployment["spec"].get("replicas") == 0 and not living(observed.pods):
        return True
    return _is_asked_for(observed) and improvable_in_s(observed, now) == 0.0


def improvable_in_s(observed: Observed, now: datetime) -> float | None:
    """Seconds until a better plan may be taken; None where the service does not ask for it."""
    if not _is_asked_for(observed):
        return None
    times = (
        each["metadata"].get("creationTimestamp") for each in observed.configmaps.values() if each.get("immutable")
    )
    newest = max(filter(None, times), default=None)
    return 0.0 if newest is None else max(0.0, COOLDOWN_S - (now - moment(newest)).total_seconds())


def _is_asked_for(observed: Observed) -> bool:
    return observed.service is not None and observed.service.spec.placement.replan == "WhenBetter"
