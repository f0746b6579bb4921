"""What Kueue says of the pods that it holds back: only the Workload that it makes for each of them has it.

Kueue may not be installed, and writes about its Workloads all the time. So they are not watched: those of pods that
wait are read now and then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from uellm.reconcile.conditions import clip
from uellm.reconcile.kueue import gates, words_about
from uellm.reconcile.names import Key

Object = Mapping[str, Any]
Fetch = Callable[[Object], Awaitable[Sequence[Object] | None]]
"""Pod -> the Workloads that are for it; None where they could not be read."""

ASK_EVERY_S = 15.0
_GATES = "kueue.x-k8s.io/"
_MESSAGE_LENGTH = 1024


class _QueueAnswer(NamedTuple):
    at: datetime
    words: str


class QueueWords:
    """Why each pod waits in its queue, by pod uid."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._known: dict[Key, dict[str, _QueueAnswer]] = {}

    async def refresh(self, key: Key, pods: Sequence[Object], clock: Callable[[], datetime]) -> float | None:
        """Ask about a service's pods that Kueue holds back. Returns in how many seconds to ask again, or None."""
        before, now = self._known.get(key, {}), clock()
        waiting = {pod["metadata"]["uid"]: pod for pod in pods if any(each.startswith(_GATES) for each in gates(pod))}
        due = [uid for uid in waiting if _due_in_s(before.get(uid), now) <= 0]
        found = await asyncio.gather(*(self._fetch(waiting[uid]) for uid in due))
        now = clock()  # they may have come late
        fresh = {uid: _answer(each, before.get(uid), now) for uid, each in zip(due, found, strict=True)}
        self._known[key] = known = {uid: before[uid] for uid in waiting if uid in before} | fresh
        if not known:
            del self._known[key]
        return min((_due_in_s(answer, now) for answer in known.values()), default=None)

    def of(self, key: Key) -> dict[str, str]:
        """The words about the service's pods, by uid."""
        return {uid: answer.words for uid, answer in self._known.get(key, {}).items() if answer.words}

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._known.pop(key, None)


def _answer(workloads: Sequence[Object] | None, before: _QueueAnswer | None, now: datetime) -> _QueueAnswer:
    if workloads is None:
        return _QueueAnswer(now, "" if before is None else before.words)
    return _QueueAnswer(now, clip(words_about(workloads), _MESSAGE_LENGTH))


def _due_in_s(answer: _QueueAnswer | None, now: datetime) -> float:
    return 0.0 if answer is None else ASK_EVERY_S - (now - answer.at).total_seconds()
