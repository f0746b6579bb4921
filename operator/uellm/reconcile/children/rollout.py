"""How replicas are replaced when their template changes. Pure.

`spec.rollout` is followed where it is set. Left unset, it is decided at each change: with a surge, one more replica
starts before an old one ends, and nothing is missing meanwhile. It needs GPUs of its own: free ones, or those of a pod
of the service that is more than it needs. Where there are none at that moment, or where the additional pod does not
start within a minute after all, replicas are replaced in place. Between changes the Deployment is kept ready for a
surge, because `kubectl rollout restart` asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from uellm.api import LLMService
from uellm.reconcile.drift import holds
from uellm.reconcile.names import ROLLOUT_ANNOTATION, revision_label
from uellm.text import counted


class Surge(NamedTuple):
    """What a decision about a surge depends on."""

    gpus: int = 0
    """GPUs of a replica."""
    room: str = ""
    """A node that has room for another replica besides those that run; empty for none."""
    spare: str = ""
    """A pod of the service itself that is more than it needs; empty for none."""
    stuck: str = ""
    """Why the additional pod of a rollout does not start, as a clause; empty while it may."""
    hopeless: str = ""
    """Why a stand-in is not waited for any longer, as a clause; empty while it may serve."""
    announced: bool = False
    """Whether Karpenter manages the nodes of its pods: it looks at the budget before it marks one."""


NO_SURGE = Surge()


class RollingUpdate(NamedTuple):
    """A Deployment's strategy, and why it is this one; no reason where the user has set it."""

    max_surge: int
    max_unavailable: int
    why: str = ""

    def strategy(self) -> dict[str, Any]:
        """`spec.strategy` of the Deployment."""
        return {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxSurge": self.max_surge, "maxUnavailable": self.max_unavailable},
        }


def rolling_update(
    service: LLMService, live: Mapping[str, Any] | None, template: Mapping[str, Any], surge: Surge
) -> RollingUpdate:
    """The strategy of a Deployment that is to have this pod template. `live`: as it is now; None: there is none."""
    if service.spec.rollout is not None:
        return RollingUpdate(service.spec.rollout.max_surge, service.spec.rollout.max_unavailable)
    if live is None:
        return _for_a_change(surge) if surge.room else _AT_FIRST
    if is_change(template, live["spec"]["template"]):
        return _for_a_change(surge)
    before = _of(live) or _AT_FIRST
    if _is_at_rest(live):
        return _for_a_change(surge) if surge.room and not (before.max_surge or surge.stuck) else before
    return given_up(live, surge) or before


def given_up(live: Mapping[str, Any], surge: Surge) -> RollingUpdate | None:
    """In place, for a rollout under way whose additional pod does not start; None where there is no such rollout."""
    before = _of(live)
    if before is None or not before.max_surge or not surge.stuck or _is_at_rest(live):
        return None
    return RollingUpdate(0, 1, f"in place: {surge.stuck}")


def is_change(template: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    """Whether pods of the template are others than those of the live one.

    Their revisions tell: the content may have been rewritten by a webhook, and is put right without a rollout of ours.
    """
    if revision := revision_label(template):
        return revision != revision_label(live)
    return not holds(template, live)


def is_rolling(live: Mapping[str, Any] | None) -> bool:
    """Whether the Deployment has pods of another template."""
    status = (live or {}).get("status") or {}
    return int(status.get("replicas") or 0) != int(status.get("updatedReplicas") or 0)


def rollout_reason(live: Mapping[str, Any] | None) -> str:
    """How the Deployment's replicas are being replaced, and why; empty where the user has set it."""
    return str((((live or {}).get("metadata") or {}).get("annotations") or {}).get(ROLLOUT_ANNOTATION) or "")


def _for_a_change(surge: Surge) -> RollingUpdate:
    gpus = counted(surge.gpus, "free GPU")
    if surge.room:
        return RollingUpdate(1, 0, f"surge: node {surge.room} has the {gpus} for one more replica meanwhile")
    if surge.spare:
        return RollingUpdate(1, 0, f"surge: pod {surge.spare} gives its GPUs to the next one")
    return RollingUpdate(0, 1, f"in place: no node has the {gpus} for one more replica meanwhile")


def _of(live: Mapping[str, Any]) -> RollingUpdate | None:
    """What was decided last; None where the Deployment has another strategy."""
    found = ((live["spec"].get("strategy") or {}).get("rollingUpdate")) or {}
    shape = (found.get("maxSurge"), found.get("maxUnavailable"))
    why = rollout_reason(live)
    return RollingUpdate(*shape, why) if why and shape in ((1, 0), (0, 1)) else None


def _is_at_rest(live: Mapping[str, Any]) -> bool:
    """Whether the Deployment's controller has nothing to replace."""
    seen = int((live.get("status") or {}).get("observedGeneration") or 0)
    return seen >= int(live["metadata"].get("generation") or 0) and not is_rolling(live)


_AT_FIRST = RollingUpdate(0, 1, "in place: nothing has been replaced yet")
