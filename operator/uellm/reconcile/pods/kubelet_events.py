"""What a kubelet says of pods that it starts: failed mounts, networks that are not ready, images that it pulls.

Only Events have it. They are read when a pod has been bound for a while and some container of it has not started: a
watch would bring every Event of the cluster.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from uellm.reconcile.conditions import clip
from uellm.reconcile.names import Key
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.times import moment

Object = Mapping[str, Any]
Fetch = Callable[[Object], Awaitable[Sequence[Object]]]
"""Pod -> the Events about it (v1)."""

PATIENCE_S = 15.0
ASK_EVERY_S = 20.0
_MESSAGE_LENGTH = 1024
# Shown by the pod's own status, or from before it was bound.
_SHOWN_ELSEWHERE = frozenset({"FailedScheduling", "BackOff", "Failed", "Unhealthy", "FailedPreStopHook"})


_IMAGE = re.compile(r'image "([^"]+)"')
_PULLING, _PULL_ENDED = "Pulling", ("Pulled", "Failed")
# Of a container that merely has not been started yet.
_USUAL = ("", "ContainerCreating", "PodInitializing")


class _Answer(NamedTuple):
    at: datetime
    warning: str
    """Empty where there is none."""
    pull: str = ""
    """Which image is pulled, and since when; empty where none is."""


class KubeletEvents:
    """The last warning about each pod that does not start, and the image that it waits for, by pod uid."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: dict[Key, dict[str, _Answer]] = {}

    async def refresh(self, key: Key, pods: Sequence[Object], clock: Callable[[], datetime]) -> float | None:
        """Ask about a service's pods that do not start. Returns in how many seconds to ask again, or None."""
        before, now = self._known.get(key, {}), clock()
        waiting = {pod["metadata"]["uid"]: pod for pod in living(pods) if _waits_for_its_kubelet(pod)}
        due = [uid for uid, pod in waiting.items() if _due_in_s(pod, before.get(uid), now) <= 0]
        answers = await asyncio.gather(*(self._ask(waiting[uid], before.get(uid), clock) for uid in due))
        known = {uid: before[uid] for uid in waiting if uid in before} | dict(zip(due, answers, strict=True))
        now = clock()  # they may have come late
        # With its first container, volumes and network are there.
        self._known[key] = known = {
            uid: answer._replace(warning="") if _has_started(waiting[uid]) else answer for uid, answer in known.items()
        }
        if not known:
            del self._known[key]
        return min((_due_in_s(pod, known.get(uid), now) for uid, pod in waiting.items()), default=None)

    def of(self, key: Key) -> dict[str, str]:
        """The warnings about the service's pods, by uid."""
        return {uid: answer.warning for uid, answer in self._known.get(key, {}).items() if answer.warning}

    def pulls_of(self, key: Key) -> dict[str, str]:
        """The images that the service's pods wait for, by uid: `image NAME since TIME`."""
        return {uid: answer.pull for uid, answer in self._known.get(key, {}).items() if answer.pull}

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._known.pop(key, None)

    async def _ask(self, pod: Object, before: _Answer | None, clock: Callable[[], datetime]) -> _Answer:
        events = await self._fetch(pod)
        # Events live for an hour, and the pod may wait longer.
        warning = last_warning(events) or (before.warning if before is not None else "")
        pull = image_pull(events)
        if pull is None:
            pull = before.pull if before is not None else ""
        return _Answer(clock(), warning, pull)


def _waits_for_its_kubelet(pod: Object) -> bool:
    return bound_since(pod) is not None and (not _has_started(pod) or any(map(_is_to_start, _containers(pod))))


def _containers(pod: Object) -> Sequence[Object]:
    return pod["status"].get("containerStatuses") or ()


def _is_to_start(status: Object) -> bool:
    waiting = (status.get("state") or {}).get("waiting")
    return waiting is not None and not status.get("restartCount") and (waiting.get("reason") or "") in _USUAL


def _due_in_s(pod: Object, answer: _Answer | None, now: datetime) -> float:
    if answer is not None:
        return ASK_EVERY_S - (now - answer.at).total_seconds()
    bound = bound_since(pod)
    assert bound is not None
    return PATIENCE_S - (now - bound).total_seconds()


def last_warning(events: Sequence[Object]) -> str:
    """The newest warning that only an Event shows: its reason and message; empty where there is none."""
    warnings = [
        event for event in events if event.get("type") == "Warning" and event.get("reason") not in _SHOWN_ELSEWHERE
    ]
    newest = max(warnings, key=_last_seen, default=None)
    if newest is None:
        return ""
    return clip(f"{newest.get('reason')}: {' '.join(str(newest.get('message') or '').split())}", _MESSAGE_LENGTH)


def image_pull(events: Sequence[Object]) -> str | None:
    """The image that is pulled last: `image NAME since TIME`. Empty where all pulls have ended; None where the Events
    tell of none."""
    begun: dict[str, str] = {}
    ended: dict[str, str] = {}
    for event in events:
        named = _IMAGE.search(str(event.get("message") or ""))
        reason = event.get("reason")
        if named is None or reason not in (_PULLING, *_PULL_ENDED):
            continue
        times = begun if reason == _PULLING else ended
        times[named[1]] = max(times.get(named[1], ""), _last_seen(event))
    under_way = {image: since for image, since in begun.items() if since > ended.get(image, "")}
    if not under_way:
        return "" if begun or ended else None
    image = max(under_way, key=lambda each: under_way[each])
    return clip(f"image {image} since {under_way[image]}", _MESSAGE_LENGTH)


def bound_since(pod: Object) -> datetime | None:
    """When the pod was given its node; None where it has none."""
    for condition in pod["status"].get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "True":
            return moment(str(condition["lastTransitionTime"]))
    return None


def _has_started(pod: Object) -> bool:
    """Whether any container runs or has run: volumes and network are there."""
    status = pod["status"]
    statuses = [*(status.get("initContainerStatuses") or ()), *_containers(pod)]
    return any({"running", "terminated"} & (each.get("state") or {}).keys() for each in statuses) or any(
        each.get("restartCount") for each in statuses
    )


def _last_seen(event: Object) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
