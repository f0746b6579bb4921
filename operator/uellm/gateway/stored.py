"""Which replica keeps a response: vLLM keeps it in the memory of the one that made it.

What this gateway has passed on it remembers. Of other responses the replicas are asked, for gateways share no state.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable
from itertools import islice
from typing import NamedTuple

from uellm.gateway.catalog import ServiceKey
from uellm.gateway.replicas import Replica
from uellm.http import EngineLost, EngineUnreachable, Pairs
from uellm.proxying.response_id import RESPONSES

MOST_REMEMBERED = 32_768
MOST_ASKED = 64
"""Replicas that are asked for one response."""
MOST_SEARCHES = 4
"""At a time; further ones wait. A client can ask for any id."""
ASK_S = 2.0


class Holder(NamedTuple):
    """Who has a response."""

    service: ServiceKey
    replica: str
    named: bool = True
    """A request named the service: it may have the keys of those who ask for the response."""


class AskedReplica(NamedTuple):
    """A replica that may have a response, and the headers that it is asked with."""

    service: ServiceKey
    replica: Replica
    headers: Pairs


class StoredResponses:
    """Holders by the ids of responses, the last `most` that were used."""

    def __init__(self, most: int = MOST_REMEMBERED) -> None:
        self._holders: OrderedDict[str, Holder] = OrderedDict()
        self._most = most
        self._searches = asyncio.Semaphore(MOST_SEARCHES)

    def __len__(self) -> int:
        return len(self._holders)

    def remember(self, response_id: str, holder: Holder) -> None:
        """A replica has made this response, or has it. No other service takes over what a named one has."""
        known = self._holders.get(response_id)
        if known is None or known.service == holder.service or holder.named > known.named:
            self._holders[response_id] = holder
        self._holders.move_to_end(response_id)
        if len(self._holders) > self._most:
            self._holders.popitem(last=False)

    def holder(self, response_id: str) -> Holder | None:
        """Who has it, as far as this gateway knows."""
        found = self._holders.get(response_id)
        if found is not None:
            self._holders.move_to_end(response_id)
        return found

    async def search(self, response_id: str, asked: Iterable[AskedReplica], *, named: bool) -> AskedReplica | None:
        """Ask all of these at once; the first that has it. None: none does, or none of the first `MOST_ASKED`.

        `named`: the request names their service.
        """
        async with self._searches:
            asking = [asyncio.create_task(_has(each, response_id)) for each in islice(asked, MOST_ASKED)]
            try:
                for first in asyncio.as_completed(asking):
                    if (found := await first) is not None:
                        self.remember(response_id, Holder(found.service, found.replica.name, named))
                        return found
            finally:
                for task in asking:
                    task.cancel()
        return None


async def _has(asked: AskedReplica, response_id: str) -> AskedReplica | None:
    try:
        async with asyncio.timeout(ASK_S):
            upstream = await asked.replica.pool.send("GET", f"{RESPONSES}/{response_id}".encode(), asked.headers, b"")
            try:
                return asked if upstream.status == 200 else None
            finally:
                upstream.abort()
    except (EngineUnreachable, EngineLost, TimeoutError):
        return None
