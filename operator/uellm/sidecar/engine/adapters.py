"""Brings the engine's LoRA adapters to those of the configuration, by vLLM's own routes on loopback.

Whatever the engine serves is compared with what it should serve, so a new engine process, a new configuration and a
sidecar that was restarted are one case. A new engine takes no request before each adapter was tried. One that fails is
tried again later, and the others are served.

    GET  /v1/models                the base model, and each adapter with its path
    POST /v1/load_lora_adapter     {lora_name, lora_path, load_inplace}
    POST /v1/unload_lora_adapter   {lora_name}

Adapters of a hub are downloaded by the engine's parent, because the engine itself would take whatever a branch is now.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from uellm.api.sidecar_document import SidecarAdapter
from uellm.http import EngineAddress, EngineLost, EnginePool, EngineUnreachable, Pairs
from uellm.pod_interface import ADAPTER_PATH, ADAPTER_TOKEN_FILE, ADAPTER_TOKEN_HEADER
from uellm.sidecar.settings import LiveSettings

LOG = logging.getLogger("uellm.sidecar")

LIST_TIMEOUT_S = 10.0
LOAD_TIMEOUT_S = 300.0
DOWNLOAD_TIMEOUT_S = 1800.0
CHECK_EVERY_S = 10.0
"""How often the engine's list is compared with the configuration."""
FIRST_RETRY_S, LONGEST_RETRY_S = 5.0, 300.0
PATIENCE_S = 60.0
"""How long a new engine waits for adapters that cannot be downloaded."""
LONGEST_REASON = 500
_JSON: Pairs = ((b"Content-Type", b"application/json"),)


class _FailedError(Exception):
    """An adapter cannot be served, for a reason."""


class _UnavailableError(_FailedError):
    """It could not be downloaded, which may pass."""


class AdapterLoader:
    """Loads and unloads adapters. `parent`: address of the engine's parent; `run_directory`: holds its secret."""

    def __init__(
        self,
        pool: EnginePool,
        settings: LiveSettings,
        parent: EngineAddress | None = None,
        run_directory: Path | None = None,
        *,
        check_every_s: float = CHECK_EVERY_S,
        first_retry_s: float = FIRST_RETRY_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._pool = pool
        self._settings = settings
        self._parent = None if parent is None else EnginePool(parent)
        self._run_directory = run_directory
        self._check_every_s, self._first_retry_s, self.patience_s = check_every_s, first_retry_s, patience_s
        self._loaded: dict[str, SidecarAdapter] = {}
        self._answered_to: set[str] = set()
        self._failed: dict[str, tuple[SidecarAdapter, str]] = {}
        self._retry: dict[str, tuple[float, float]] = {}
        """When a failed one is tried again, and after how long then."""
        self._paths: dict[tuple[str, str], str] = {}
        self._starting_since_s: float | None = None
        self._unavailable = False
        self._passing: set[str] = set()
        """Of the failed ones, those for which that may change soon."""
        self._answered = False
        """An engine has answered. Before that there is nothing to compare with."""
        self._poke = asyncio.Event()
        self._lock = asyncio.Lock()

    @property
    def loaded(self) -> tuple[str, ...]:
        """The adapters that are served as the configuration has them, and those that are still to be unloaded."""
        wanted = {each.name: each for each in self._settings.current.adapters}
        return tuple(name for name, each in self._loaded.items() if wanted.get(name, each) == each)

    @property
    def served(self) -> tuple[str, ...]:
        """Every adapter that the engine answers to, also an older version of one that is to be replaced."""
        return tuple(sorted(self._answered_to))

    @property
    def failed(self) -> tuple[tuple[str, str], ...]:
        """The adapters that are not, and why."""
        wanted = set(self._settings.current.adapters)
        return tuple((name, why) for name, (adapter, why) in sorted(self._failed.items()) if adapter in wanted)

    def changed(self) -> None:
        """There is a new configuration, or the engine is back."""
        self._retry.clear()
        self._poke.set()

    async def engine_started(self) -> bool:
        """Load all adapters into an engine that has just started; whether it may take requests then.

        It waits a while for a hub that does not answer. Of what the engine refuses, waiting makes nothing better.
        """
        if not self._settings.current.loads_adapters:
            return True
        now_s = asyncio.get_running_loop().time()
        if self._starting_since_s is None:
            self._starting_since_s = now_s
            self._loaded.clear()
            self._answered_to.clear()
            self._retry.clear()
        if not await self._bring() or (self._unavailable and now_s - self._starting_since_s < self.patience_s):
            return False
        self._starting_since_s = None
        return True

    async def watch(self) -> None:
        """Keep them as the configuration has them, until cancelled."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._check_every_s):
                    await self._poke.wait()
            self._poke.clear()
            if self._settings.current.loads_adapters and self._answered:
                await self._bring()

    def close(self) -> None:
        """Close all connections at once."""
        if self._parent is not None:
            self._parent.close()

    async def _bring(self) -> bool:
        """Make one round; whether the engine answered."""
        async with self._lock:
            try:
                served = await self._served()
                self._answered, self._unavailable = True, False
                self._answered_to = set(served)
                wanted = self._settings.current.adapters
                self._forget_all_but(wanted)
                for adapter in wanted:
                    await self._serve(adapter, served)
                for name in served.keys() - {each.name for each in wanted}:
                    await self._unload(name)
            except (EngineUnreachable, EngineLost, TimeoutError):
                return False
            return True

    def _forget_all_but(self, wanted: tuple[SidecarAdapter, ...]) -> None:
        names = {each.name for each in wanted}
        for known in (self._failed, self._retry):
            for name in known.keys() - names:
                del known[name]

    async def _served(self) -> Mapping[str, str]:
        """The path of each adapter that the engine serves, by name."""
        status, answer = await self._call(self._pool, "GET", b"/v1/models", None, LIST_TIMEOUT_S)
        if status != 200 or not isinstance(answer, dict):
            raise TimeoutError
        entries = [each for each in answer.get("data") or () if isinstance(each, dict) and each.get("parent")]
        return {str(each.get("id")): str(each.get("root")) for each in entries}

    async def _serve(self, adapter: SidecarAdapter, served: Mapping[str, str]) -> None:
        failed, now_s = self._failed.get(adapter.name), asyncio.get_running_loop().time()
        if failed is not None and failed[0] == adapter and now_s < self._retry.get(adapter.name, (0.0, 0.0))[0]:
            self._unavailable |= adapter.name in self._passing
            return
        try:
            path = adapter.path or await self._downloaded(adapter)
            if served.get(adapter.name) != path:
                await self._load(adapter.name, path, again=adapter.name in served)
                LOG.info("adapter %s: served from %s", adapter.name, path)
        except _FailedError as error:
            passing = isinstance(error, _UnavailableError)
            self._unavailable |= passing
            (self._passing.add if passing else self._passing.discard)(adapter.name)
            self._note_failure(adapter, str(error), now_s)
            return
        self._loaded[adapter.name] = adapter
        self._failed.pop(adapter.name, None)
        self._retry.pop(adapter.name, None)

    def _note_failure(self, adapter: SidecarAdapter, why: str, now_s: float) -> None:
        self._loaded.pop(adapter.name, None)
        if self._failed.get(adapter.name) != (adapter, why):
            LOG.error("adapter %s: not served: %s", adapter.name, why)
        self._failed[adapter.name] = adapter, why
        wait_s = self._retry.get(adapter.name, (0.0, self._first_retry_s))[1]
        self._retry[adapter.name] = now_s + wait_s, min(2 * wait_s, LONGEST_RETRY_S)

    async def _load(self, name: str, path: str, *, again: bool) -> None:
        """`again`: another adapter has the name, and this one takes its place at once."""
        body = {"lora_name": name, "lora_path": path, "load_inplace": again}
        status, answer = await self._call(self._pool, "POST", b"/v1/load_lora_adapter", body, LOAD_TIMEOUT_S)
        if status != 200:
            raise _FailedError(_reason(status, answer))
        self._answered_to.add(name)

    async def _unload(self, name: str) -> None:
        body = {"lora_name": name}
        self._answered_to.discard(name)
        status, answer = await self._call(self._pool, "POST", b"/v1/unload_lora_adapter", body, LOAD_TIMEOUT_S)
        if status in (200, 404):
            self._loaded.pop(name, None)
            LOG.info("adapter %s: no longer served", name)
        else:
            LOG.error("adapter %s: cannot be unloaded: %s", name, _reason(status, answer))

    async def _downloaded(self, adapter: SidecarAdapter) -> str:
        """The directory of a hub's adapter in the engine's container, downloaded where it is not there."""
        key = adapter.repository, adapter.commit
        if key not in self._paths:
            self._paths[key] = await self._download(adapter)
        return self._paths[key]

    async def _download(self, adapter: SidecarAdapter) -> str:
        if self._parent is None or self._run_directory is None:
            raise _UnavailableError("the sidecar knows no process that downloads adapters")
        try:
            token = (self._run_directory / ADAPTER_TOKEN_FILE).read_bytes()
            body = {"repository": adapter.repository, "commit": adapter.commit}
            target, headers = ADAPTER_PATH.encode(), ((ADAPTER_TOKEN_HEADER.encode(), token),)
            status, answer = await self._call(self._parent, "POST", target, body, DOWNLOAD_TIMEOUT_S, headers)
        except OSError as error:
            raise _UnavailableError(f"the engine's container does not download yet: {error.strerror}") from error
        except (EngineUnreachable, EngineLost, TimeoutError) as error:
            raise _UnavailableError("the engine's container does not answer") from error
        path = answer.get("path") if isinstance(answer, dict) else None
        if status != 200 or not isinstance(path, str):
            raise _UnavailableError(_reason(status, answer))
        return path

    async def _call(
        self, pool: EnginePool, method: str, target: bytes, body: Any, timeout_s: float, headers: Pairs = ()
    ) -> tuple[int, Any]:
        """Status and JSON of the answer, None where it is none. Raises EngineUnreachable, EngineLost, TimeoutError."""
        content = b"" if body is None else json.dumps(body).encode()
        async with asyncio.timeout(timeout_s):
            upstream = await pool.send(method, target, (*_JSON, *headers), content)
            try:
                status, answer = upstream.status, await upstream.read()
            finally:
                upstream.abort()
        try:
            return status, json.loads(answer)
        except ValueError:
            return status, None


def _reason(status: int, answer: Any) -> str:
    """The message of an answer, in one line."""
    error = answer.get("error") if isinstance(answer, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    text = " ".join(str(message).split()) if message else f"status {status}"
    return text[:LONGEST_REASON]
