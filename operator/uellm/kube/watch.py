"""List, then watch, for as long as the caller cares: every change of a kind arrives, in spite of the network.

    list ---> ADDED ... SYNCED ---> watch from the list's resource version ---> ADDED, MODIFIED, DELETED ...
      ^                                   |  ended or failed: again from the last version seen
      +----- 410 Gone, or not a word -----+  (the second list yields what changed, and DELETED for what vanished)

The server sends a bookmark a minute to a watch with nothing to tell, and one before it ends it. So 70 s without a byte
means that the connection is dead, whatever TCP believes; and a watch that was opened and told nothing at all may be one
from a version that the server never had: after a restore from a backup it waits in silence until it gets there.
Delays between failures grow to a cap with full jitter.
"""

from __future__ import annotations

import json
import logging
import random
from asyncio import sleep
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

from uellm.kube.errors import Gone, KubeError, Unavailable, error_from
from uellm.kube.transport import Transport

ADDED = "ADDED"
MODIFIED = "MODIFIED"
DELETED = "DELETED"
SYNCED = "SYNCED"  # ours: the first list is complete; `object` is empty
BOOKMARK = "BOOKMARK"  # the server's, not passed on: only the version moved
ERROR = "ERROR"

SILENCE_S = 70.0
SESSION_S = 290.0  # a watch is renewed by the server after this long; load balancers like connections to end
PAGE = 500
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0

logger = logging.getLogger(__name__)


class Event(NamedTuple):
    """One change. A DELETED found by a second list has only apiVersion, kind and the identity in its metadata."""

    type: str
    object: dict[str, Any]


class Watch:
    """One endless watch. `query` holds the selectors; `on_contact` is called whenever the server was heard."""

    def __init__(
        self,
        transport: Transport,
        path: str,
        query: Mapping[str, str],
        *,
        session_s: float = SESSION_S,
        silence_s: float = SILENCE_S,
        on_contact: Callable[[], None] | None = None,
    ) -> None:
        self._transport = transport
        self._path = path
        self._query = query
        self._session_s = session_s
        self._silence_s = silence_s
        self._on_contact = on_contact or (lambda: None)
        self._version = ""  # empty: list first
        self._known: dict[tuple[str, str], dict[str, Any]] = {}
        self._synced = False
        self._failures = 0
        self._wordless = False

    async def events(self) -> AsyncGenerator[Event]:
        """Yield events until the caller stops. KubeErrors are logged and waited out, never raised."""
        while True:
            failure: KubeError | None = None
            try:
                async with aclosing(self._list_then_watch()) as events:
                    async for event in events:
                        yield event
            except KubeError as error:
                failure = error
            if self._wordless or isinstance(failure, Gone):
                self._version = ""
            if self._wordless or failure:
                await self._pause(failure)

    async def _list_then_watch(self) -> AsyncGenerator[Event]:
        if not self._version:
            objects, version = await list_all(self._transport, self._path, self._query, on_page=self._on_contact)
            for event in self._changes(objects):
                yield event
            self._version = version
            if not self._synced:
                self._synced = True
                yield Event(SYNCED, {})
        async with aclosing(self._watch()) as events:
            async for event in events:
                yield event

    async def _watch(self) -> AsyncGenerator[Event]:
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(round(self._session_s)),
        }
        self._wordless = False
        lines = self._transport.lines(self._path, query=query, silence_s=self._silence_s, on_open=self._opened)
        async with aclosing(lines):
            async for line in lines:
                event, self._version = _parse(line)
                self._wordless = False
                self._failures = 0
                self._on_contact()
                if event.type != BOOKMARK:
                    self._remember(event)
                    yield event

    def _opened(self) -> None:
        self._wordless = True
        self._on_contact()

    def _changes(self, objects: list[dict[str, Any]]) -> Iterator[Event]:
        vanished = dict(self._known)
        for obj in objects:
            before = vanished.pop(_key(obj), None)
            event = Event(MODIFIED if before else ADDED, obj)
            if before is None or before["metadata"].get("resourceVersion") != obj["metadata"].get("resourceVersion"):
                self._remember(event)
                yield event
        for stub in vanished.values():
            event = Event(DELETED, stub)
            self._remember(event)
            yield event

    def _remember(self, event: Event) -> None:
        if event.type == DELETED:
            self._known.pop(_key(event.object), None)
        else:
            self._known[_key(event.object)] = _stub(event.object)

    async def _pause(self, failure: KubeError | None) -> None:
        self._failures += 1
        longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 10))
        wished_s = (failure.retry_after_s if failure else None) or 0.0
        delay_s = max(random.uniform(0, longest_s), min(wished_s, LONGEST_DELAY_S))
        level = logging.WARNING if failure and not isinstance(failure, Gone) else logging.INFO
        logger.log(level, "watch of %s: %s; again in %.1f s", self._path, failure or "ended without a word", delay_s)
        await sleep(delay_s)


async def list_all(
    transport: Transport, path: str, query: Mapping[str, str], *, on_page: Callable[[], None] | None = None
) -> tuple[list[dict[str, Any]], str]:
    """All objects of a collection, page by page, and the resource version at which they were so."""
    objects: list[dict[str, Any]] = []
    token = ""
    while True:
        page = {**query, "limit": str(PAGE), **({"continue": token} if token else {})}
        document = await transport.call("GET", path, query=page)
        if on_page is not None:
            on_page()
        kind, api_version = document.get("kind", "").removesuffix("List"), document.get("apiVersion", "")
        for item in document.get("items") or ():
            # The items of a list carry neither; everything else in this program expects them.
            objects.append(lean({"apiVersion": api_version, "kind": kind, **item}))
        metadata = document.get("metadata") or {}
        token = metadata.get("continue") or ""
        if not token:
            return objects, metadata.get("resourceVersion", "")


def lean(obj: dict[str, Any]) -> dict[str, Any]:
    """Drop managedFields in place: often half of an object's bytes, and read by nobody here."""
    (obj.get("metadata") or {}).pop("managedFields", None)
    return obj


def _parse(line: bytes) -> tuple[Event, str]:
    """The event of a line and the resource version to go on from."""
    try:
        document = json.loads(line)
        event = Event(document["type"], document["object"])
        if event.type != ERROR:
            return Event(event.type, lean(event.object)), event.object["metadata"]["resourceVersion"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Unavailable(0, "NotJSON", f"a line of the watch is no event: {line[:200]!r}") from error
    raise error_from(int(event.object.get("code") or 500), json.dumps(event.object).encode())


def _key(obj: Mapping[str, Any]) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _stub(obj: dict[str, Any]) -> dict[str, Any]:
    kept = ("name", "namespace", "uid", "resourceVersion", "labels", "ownerReferences")
    metadata = {field: obj["metadata"][field] for field in kept if field in obj["metadata"]}
    return {"apiVersion": obj.get("apiVersion", ""), "kind": obj.get("kind", ""), "metadata": metadata}
