"""Keeps a snapshot up to date by two watches, and knows its age."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from uellm.api.names import SERVICE_LABEL
from uellm.extender.snapshot import Snapshot
from uellm.kube import DELETED, GPUNODEPROFILE, POD, SYNCED, Event, Kind, Kube

STALE_S = 30.0
# Even a quiet watch makes contact this often, so a lost one shows long before STALE_S.
SESSION_S = 10.0
SILENCE_S = 15.0
# A pod without a node holds nothing.
HAS_NODE = "spec.nodeName!="


class View:
    """A snapshot of the cluster. `run` keeps it up to date; until the first lists are complete it is stale."""

    def __init__(self, kube: Kube, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.snapshot = Snapshot()
        self._kube = kube
        self._clock = clock
        self._heard: dict[Kind, float] = {}
        self._synced: set[Kind] = set()

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow(GPUNODEPROFILE, self._profile))
            tasks.create_task(self._follow(POD, self._pod, label_selector=SERVICE_LABEL, field_selector=HAS_NODE))

    def staleness(self) -> str | None:
        """None while the snapshot is fresh, else a sentence that says why it is not."""
        if len(self._synced) < 2:
            return "the extender has not read the cluster yet"
        age_s = self.age_s()
        if age_s > STALE_S:
            return f"the extender has had no contact with the API server for {age_s:.0f} s"
        return None

    def age_s(self) -> float:
        """Seconds since the API server was heard of; infinite before the first time."""
        return self._clock() - min(self._heard.values(), default=float("-inf"))

    async def _follow(
        self, kind: Kind, put: Callable[[Event], None], label_selector: str = "", field_selector: str = ""
    ) -> None:
        def heard() -> None:
            self._heard[kind] = self._clock()

        events = self._kube.watch(
            kind,
            label_selector=label_selector,
            field_selector=field_selector,
            session_s=SESSION_S,
            silence_s=SILENCE_S,
            on_contact=heard,
        )
        async for event in events:
            if event.type == SYNCED:
                self._synced.add(kind)
            else:
                put(event)

    def _profile(self, event: Event) -> None:
        if event.type == DELETED:
            self.snapshot.drop_profile(event.object["metadata"]["name"])
        else:
            self.snapshot.put_profile(event.object)

    def _pod(self, event: Event) -> None:
        if event.type == DELETED:
            self.snapshot.drop_pod(event.object["metadata"]["uid"])
        else:
            self.snapshot.put_pod(event.object)
