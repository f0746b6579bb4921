"""List, then watch until the caller stops: every change of a kind arrives, despite broken connections.

    list ---> ADDED ... SYNCED ---> watch from the list's resource version ---> ADDED, MODIFIED, DELETED ...
      ^                                   |  ended or failed: again from the last version seen
      +----- 410 Gone, history lost ------+  (the second list yields what changed, and DELETED for what vanished)

The server is asked to end each watch after a minute, so a longer silence means that the connection is dead, even if TCP
does not notice. A watch without any event may be from a version that the server does not have: after a restore from a
backup it waits silently until it reaches that version. So after such a watch the server is asked for its current
version. Delays between failures grow up to a limit, with full jitter.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from asyncio import sleep
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, NamedTuple

import msgspec

from uellm.kube.errors import Forbidden, Gone, KubeError, NotFound, Unavailable, error_from
from uellm.kube.transport import Transport

ADDED = "ADDED"
MODIFIED = "MODIFIED"
DELETED = "DELETED"
SYNCED = "SYNCED"
"""Our own: the first list is complete; `object` is empty."""
BOOKMARK = "BOOKMARK"
"""From the server: only the version has changed. Not passed on."""
ERROR = "ERROR"

SESSION_S = 60.0
SILENCE_S = 70.0
"""Longer than a session."""
PAGE = 100
"""Objects of a list that are asked for at a time: an engine's pod with its managedFields takes 50 KiB of text."""

WITH_MANAGED_FIELDS = frozenset({"Deployment", "LeaderWorkerSet", "PodDisruptionBudget", "Service"})
"""Kinds in whose spec a person's hand changes what runs, so that it matters who has set what."""
FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 15.0
# A proxy may accept watches and end them at once. A watch that ends sooner, without an event, counts as a failure.
TOO_SHORT_S = 1.0

logger = logging.getLogger(__name__)


class Event(NamedTuple):
    """One change. A DELETED found by comparing lists has only apiVersion, kind and identifying metadata."""

    type: str
    object: dict[str, Any]


class _Known(NamedTuple):
    """What identifies an object."""

    uid: str | None
    version: str | None
    about: str
    """Its labels and owners as text, which is kept once: the children of a service have both in common."""


class Watch:
    """One endless watch. `query` holds the selectors; `on_contact` is called whenever something was received."""

    def __init__(
        self,
        transport: Transport,
        path: str,
        query: Mapping[str, str],
        *,
        session_s: float = SESSION_S,
        silence_s: float = SILENCE_S,
        on_contact: Callable[[], None] | None = None,
        optional: bool = False,
        forbidden_s: float | None = None,
        on_refused: Callable[[Forbidden | NotFound], bool] | None = None,
    ) -> None:
        """`optional`: the kind may not be installed; then `events` ends with NotFound or Forbidden.

        `forbidden_s`: `events` ends with Forbidden where that was all it heard for so long, until it has once worked.
        `on_refused`: called at every NotFound or Forbidden that is retried, in place of a line in the log. Where it
        returns True, everything that was known is yielded as DELETED.
        """
        self._on_refused = on_refused
        self._optional = optional
        self._forbidden_s = forbidden_s
        self._forbidden_since: float | None = None
        self._transport = transport
        self._path = path
        self._query = query
        self._session_s = session_s
        self._silence_s = silence_s
        self._on_contact = on_contact or (lambda: None)
        self._version = ""
        """Version to watch from; empty: list first."""
        self._known: dict[tuple[str, str], _Known] = {}
        self._type = {"apiVersion": "", "kind": ""}
        """Of all of them."""
        self._synced = False
        self._failures = 0
        self._doubtful = False
        """A watch was opened and has yielded no event yet."""

    async def events(self) -> AsyncGenerator[Event]:
        """Yield events until the caller stops. KubeErrors are logged and retried; see `optional` for those raised."""
        while True:
            failure: KubeError | None = None
            start_s = time.monotonic()
            try:
                async with aclosing(self._list_then_watch()) as events:
                    async for event in events:
                        yield event
            except Gone as error:
                self._version = ""
                failure = error
            except KubeError as error:
                if (self._optional and isinstance(error, NotFound | Forbidden)) or self._stays_forbidden(error):
                    raise
                failure = error
                if self._on_refused and isinstance(error, NotFound | Forbidden) and self._on_refused(error):
                    self._version = ""
                    for event in list(self._changes([])):
                        yield event
            if failure or (self._doubtful and time.monotonic() < start_s + TOO_SHORT_S):
                await self._pause(failure)
            else:
                self._failures = 0

    async def _list_then_watch(self) -> AsyncGenerator[Event]:
        if self._doubtful and self._version and await self._history_is_lost():
            self._version = ""
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

    def _stays_forbidden(self, error: KubeError) -> bool:
        if self._forbidden_s is None or not isinstance(error, Forbidden):
            self._forbidden_since = None
            return False
        now_s = time.monotonic()
        if self._forbidden_since is None:
            self._forbidden_since = now_s
        return now_s - self._forbidden_since >= self._forbidden_s

    async def _history_is_lost(self) -> bool:
        document = await self._transport.call("GET", self._path, query={**self._query, "limit": "1"})
        now = (document.get("metadata") or {}).get("resourceVersion", "")
        # Versions are numbers in every API server on etcd. Where they are not, only a list can show it.
        return not (now.isdigit() and self._version.isdigit()) or int(now) < int(self._version)

    async def _watch(self) -> AsyncGenerator[Event]:
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(round(self._session_s)),
        }
        self._doubtful = False
        lines = self._transport.lines(self._path, query=query, silence_s=self._silence_s, on_open=self._opened)
        async with aclosing(lines):
            async for line in lines:
                event, self._version = _parse(line)
                self._doubtful = False
                self._failures = 0
                self._on_contact()
                if event.type != BOOKMARK:
                    self._remember(event)
                    yield event

    def _opened(self) -> None:
        self._doubtful = True
        self._forbidden_s = None
        self._on_contact()

    def _changes(self, objects: list[dict[str, Any]]) -> Iterator[Event]:
        vanished = dict(self._known)
        for obj in objects:
            before = self._known.get(_key(obj))
            if before is not None and before.uid == obj["metadata"].get("uid"):
                vanished.pop(_key(obj), None)
        for (namespace, name), known in vanished.items():
            stub = self._type | {"metadata": _identity(namespace, name, known)}
            self._remember(Event(DELETED, stub))
            yield Event(DELETED, stub)
        for obj in objects:
            before = self._known.get(_key(obj))
            if before is None or before.version != obj["metadata"]["resourceVersion"]:
                self._remember(Event(ADDED, obj))
                yield Event(MODIFIED if before else ADDED, obj)

    def _remember(self, event: Event) -> None:
        if event.type == DELETED:
            self._known.pop(_key(event.object), None)
        else:
            self._type = {name: event.object.get(name, "") for name in self._type}
            self._known[_key(event.object)] = _known(event.object["metadata"])

    async def _pause(self, failure: KubeError | None) -> None:
        self._failures += 1
        longest_s = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 10))
        requested_s = (failure.retry_after_s if failure else None) or 0.0
        delay_s = max(random.uniform(0, longest_s), min(requested_s, LONGEST_DELAY_S))
        if not (self._on_refused and isinstance(failure, NotFound | Forbidden)):
            level = logging.WARNING if failure and not isinstance(failure, Gone) else logging.INFO
            why = failure or "ended without an event"
            logger.log(level, "watch of %s: %s; again in %.1f s", self._path, why, delay_s)
        await sleep(delay_s)


async def list_all(
    transport: Transport, path: str, query: Mapping[str, str], *, on_page: Callable[[], None] | None = None
) -> tuple[list[dict[str, Any]], str]:
    """All objects of a collection, read page by page, and the resource version of the list."""
    objects: list[dict[str, Any]] = []
    token = ""
    while True:
        page = {**query, "limit": str(PAGE)}
        if token:
            page["continue"] = token
            page.pop("resourceVersion", None)  # the token has it, and the server takes but one
        document = await transport.call("GET", path, query=page)
        if on_page is not None:
            on_page()
        kind, api_version = document.get("kind", "").removesuffix("List"), document.get("apiVersion", "")
        for item in document.get("items") or ():
            # The items of a list have neither, and the rest of this program expects them.
            objects.append(lean({"apiVersion": api_version, "kind": kind, **item}))
        metadata = document.get("metadata") or {}
        token = metadata.get("continue") or ""
        if not token:
            return objects, metadata.get("resourceVersion", "")


def lean(obj: dict[str, Any]) -> dict[str, Any]:
    """Drop managedFields in place: often half of an object's bytes, and of most kinds never used here."""
    if obj.get("kind") not in WITH_MANAGED_FIELDS:
        (obj.get("metadata") or {}).pop("managedFields", None)
    return obj


def _parse(line: bytes) -> tuple[Event, str]:
    """The event of a line, and the resource version to continue from."""
    try:
        document = msgspec.json.decode(line)
        event = Event(document["type"], document["object"])
        if event.type != ERROR:
            return Event(event.type, lean(event.object)), event.object["metadata"]["resourceVersion"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Unavailable(0, "NotJSON", f"a line of the watch is no event: {line[:200]!r}") from error
    raise error_from(int(event.object.get("code") or 500), msgspec.json.encode(event.object))


def _key(obj: Mapping[str, Any]) -> tuple[str, str]:
    return obj["metadata"].get("namespace", ""), obj["metadata"]["name"]


def _known(metadata: Mapping[str, Any]) -> _Known:
    about = {name: metadata[name] for name in ("labels", "ownerReferences") if name in metadata}
    return _Known(metadata.get("uid"), metadata.get("resourceVersion"), sys.intern(msgspec.json.encode(about).decode()))


def _identity(namespace: str, name: str, known: _Known) -> dict[str, Any]:
    """The identifying metadata of an object."""
    found = {"name": name, "namespace": namespace, "uid": known.uid, "resourceVersion": known.version}
    about: dict[str, Any] = msgspec.json.decode(known.about)
    return {field: value for field, value in found.items() if value} | about
