"""Replays a trace against a real endpoint: open-loop arrivals, the trace's prompt lengths, streamed answers.

A prompt is a list of token ids, so its length is exact for every tokenizer. Equal prefix ids of a trace become equal
tokens. `max_tokens` and `ignore_eos` set the answer's length, and `usage` counts it.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from uellm.errors import CannotBeDone
from uellm.evaluate.policies import first_token_deadline_s
from uellm.evaluate.replay import Fate, ReplayResult
from uellm.evaluate.scenario import Job
from uellm.evaluate.traces import PREFIX_BLOCK_TOKENS

LOWEST_ID, HIGHEST_ID = 10, 250
"""Range of token ids for prompts: every tokenizer has them, and they are above the usual special tokens."""

_PREEMPTIONS = re.compile(rb"^vllm:num_preemptions(?:_total)?(?:\{[^}]*\})? +([0-9.e+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An endpoint. `model`: its served name; `priorities`: send each deadline as vLLM's `priority`."""

    name: str
    url: str
    model: str
    api_key: str | None = None
    priorities: bool = False


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """`speed`: factor on the arrival rate. `timeout_s`: a request that takes longer counts as failed."""

    speed: float = 1.0
    timeout_s: float = 600.0


async def served_model(url: str, api_key: str | None = None) -> str:
    """The first model that an endpoint serves. Raises CannotBeDone where it does not answer."""
    try:
        async with (
            aiohttp.ClientSession(headers=_authorization(api_key)) as session,
            session.get(f"{url}/v1/models") as response,
        ):
            response.raise_for_status()
            return str((await response.json())["data"][0]["id"])
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError) as error:
        raise CannotBeDone(
            f"{url}/v1/models lists no model ({error!r}): check that the endpoint is up, or name the model by --model"
        ) from error


async def replay_live(
    jobs: Sequence[Job], endpoint: Endpoint, pace: LiveOptions, progress: Callable[[str], None] = lambda _line: None
) -> ReplayResult:
    """Send every request at its arrival time and wait for all. A refused, failed or hanging request has no end."""
    limits = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=pace.timeout_s)
    async with aiohttp.ClientSession(connector=limits, timeout=timeout) as session:
        before = await _preemptions(session, endpoint)
        client = _Client(session, endpoint, pace, asyncio.get_running_loop().time())
        fates = await asyncio.gather(*(client.send(job) for job in jobs))
        after = await _preemptions(session, endpoint)
    if client.failure:
        progress(
            f"{endpoint.name}: {sum(fate.end_s is None for fate in fates)} requests failed; the first: {client.failure}"
        )
    return ReplayResult(fates, preempted=max(0, after - before))


class _Client:
    """Sends requests to one endpoint. Times are relative to `start_s` on the event loop's clock."""

    def __init__(self, session: aiohttp.ClientSession, endpoint: Endpoint, pace: LiveOptions, start_s: float) -> None:
        self._session, self._endpoint, self._pace, self._start_s = session, endpoint, pace, start_s
        self.failure = ""

    async def send(self, job: Job) -> Fate:
        """One request, from its arrival to its end. Never raises."""
        fate = Fate(job.arrival_s / self._pace.speed)
        body = json.dumps(request_body(job, self._endpoint, fate.arrival_s)).encode()
        await asyncio.sleep(fate.arrival_s - self._now_s())
        try:
            async with asyncio.timeout(self._pace.timeout_s):
                await self._receive(job, body, fate)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            self._fail(f"request {job.index}: {type(error).__name__} {error}")
        return fate

    async def _receive(self, job: Job, body: bytes, fate: Fate) -> None:
        url = f"{self._endpoint.url}/v1/completions"
        async with self._session.post(url, data=body, headers=request_headers(job, self._endpoint)) as response:
            if response.status != 200:
                fate.refused = True
                self._fail(f"request {job.index}: {response.status} {(await response.text())[:200]}")
                return
            async for line in response.content:
                if line.startswith(b"data:") and self._event(line[5:].strip(), fate):
                    fate.end_s = self._now_s()
                    return
        raise ValueError("the stream ended without [DONE]")

    def _event(self, data: bytes, fate: Fate) -> bool:
        """Record an event; True for the last one. Raises ValueError for an error event."""
        if data == b"[DONE]":
            if fate.first_token_s is None:
                raise ValueError("the stream contained no token")
            return True
        event = json.loads(data)
        if "error" in event:
            raise ValueError(str(event["error"])[:200])
        if event.get("choices") and fate.first_token_s is None:
            fate.first_token_s = self._now_s()
        if event.get("usage"):
            fate.tokens = int(event["usage"]["completion_tokens"])
        return False

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_s

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or " ".join(reason.split())


def request_headers(job: Job, endpoint: Endpoint) -> dict[str, str]:
    """Class and tenant for the sidecar; an engine without a sidecar ignores them."""
    headers = {"content-type": "application/json", "x-slo-class": job.request_class.name}
    if job.client:
        headers["x-llm-d-inference-fairness-id"] = job.client
    return headers | _authorization(endpoint.api_key)


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def request_body(job: Job, endpoint: Endpoint, arrival_s: float) -> dict[str, Any]:
    """A streamed completion with exactly the job's lengths."""
    body: dict[str, Any] = {
        "model": endpoint.model,
        "prompt": prompt_ids(job),
        "max_tokens": job.output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if endpoint.priorities:
        body["priority"] = int(first_token_deadline_s(job, arrival_s) * 1e3)
    return body


def prompt_ids(job: Job) -> list[int]:
    """Token ids of the prompt: those of a prefix block are derived from its id, all others from the request."""
    ids: list[int] = []
    for block in job.blocks:
        ids += _ids(f"block {block}", PREFIX_BLOCK_TOKENS)
    return (ids + _ids(f"request {job.index}", max(0, job.prompt_tokens - len(ids))))[: job.prompt_tokens]


def _ids(seed: str, count: int) -> list[int]:
    return random.Random(seed).choices(range(LOWEST_ID, HIGHEST_ID), k=count)


async def _preemptions(session: aiohttp.ClientSession, endpoint: Endpoint) -> int:
    """The engine's preemption counter; 0 if its metrics cannot be read."""
    try:
        async with session.get(f"{endpoint.url}/metrics") as response:
            return int(sum(float(value) for value in _PREEMPTIONS.findall(await response.read())))
    except (aiohttp.ClientError, OSError, TimeoutError):
        return 0
