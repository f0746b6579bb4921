"""What is answered where the number of replicas does not follow the load, and why. Pure."""

from __future__ import annotations

from uellm.reconcile.children.stand_in import has_stand_in
from uellm.reconcile.kueue import gates
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.groups import replica_of
from uellm.reconcile.pods.refusal import pods_refused
from uellm.reconcile.scaling.scaling import INVALID_SPEC, Scaling
from uellm.text import counted

MOST_STARTUPS = 3
"""Where no replica has been ready for so many times `startupTimeout`, those beyond the least number are given up: their
engines make no use of their GPUs."""


def as_needed(replicas: int, took_s: float | None) -> Scaling:
    """The number that the load needs."""
    return Scaling(replicas, "AsNeeded", f"{counted(replicas, 'replica')} by load and targets", took_s)


def held(before: int, took_s: float | None, why: str) -> Scaling:
    """The same number, because the load is not known."""
    message = f"{counted(before, 'replica')} as before, because {why}"
    return Scaling(before, "NotReported", message, took_s)


def unread(before: int, took_s: float | None) -> Scaling:
    """The same number, because the spec cannot be read: what serves stays until somebody has mended it."""
    message = f"{counted(before, 'replica')} as before, because the spec is invalid: see the condition Ready"
    return Scaling(before, INVALID_SPEC, message, took_s)


def without_ready(
    observed: Observed, least: int, before: int, took_s: float | None, *, given_up: bool, served: bool
) -> Scaling:
    """The number where no replica is ready. `given_up`: for too long; `served`: one was so before."""
    message = f"{counted(least, 'replica')}, the least number, because none was ready for {MOST_STARTUPS} times "
    fewer = Scaling(least, "NotReported", f"{message}engine.startupTimeout: see the condition Ready", took_s)
    if given_up and before > least and _have_nodes(observed):
        return fewer
    if (waiting := waiting_for_room(observed, before, took_s)) is not None:
        return waiting
    if given_up and before == least:
        return fewer
    return held(before, took_s, "none is ready") if served or before > least else as_needed(before, took_s)


def _have_nodes(observed: Observed) -> bool:
    """Whether any pod was bound: those that were not hold no GPUs."""
    return any(pod["spec"].get("nodeName") for pod in living(observed.engines))


def waiting_for_room(observed: Observed, replicas: int, took_s: float | None) -> Scaling | None:
    """Told where pods are refused, find no GPUs, or wait in a queue."""
    if (refused := _refused(observed, replicas)) is not None:
        return Scaling(replicas, "ScalingLimited", refused, took_s)
    unbound = [pod for pod in living(observed.pods) if not pod["spec"].get("nodeName") and not gates(pod)]
    waiting = len({replica_of(pod) for pod in unbound})
    if waiting and observed.unschedulable_since is not None:
        message = f"{waiting} of {counted(replicas, 'replica')} find no node with free GPUs: add GPUs, or free some"
        return Scaling(replicas, "ScalingLimited", message, took_s)
    if queued := len({replica_of(pod) for pod in observed.pods if gates(pod)}):
        message = f"{queued} of {counted(replicas, 'replica')} wait in a queue, or for another scheduling gate"
        return Scaling(replicas, "ScalingLimited", message, took_s)
    return None


def _refused(observed: Observed, replicas: int) -> str | None:
    """What the API server says of replicas that it refuses; None where only an additional pod is refused, or none."""
    deployment = observed.deployment
    refused = pods_refused(deployment)
    if deployment is None or refused is None:
        return None
    wanted = int(deployment["spec"].get("replicas", 1)) - has_stand_in(deployment)
    lacking = wanted - int(deployment["status"].get("replicas") or 0)
    if lacking <= 0:
        return None
    return f"the API server refuses {lacking} of {counted(replicas, 'replica')}: {refused.message}"
