"""The Lease that lets one operator work at a time.

The holder renews it. If it cannot for a while, it stops working before another may start. Clocks of two machines
differ, so another holder's lease has expired when our own clock has not seen it change for its duration.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from datetime import UTC, datetime
from typing import Any

from uellm.errors import CannotBeDone
from uellm.kube import LEASE, Conflict, Kube, KubeError
from uellm.kube.config import in_cluster

logger = logging.getLogger(__name__)

NAME = "uellm-controller"
DURATION_S = 15.0
RENEW_S = 4.0
# We give up this early, so that a write under way ends before another operator takes the lease.
DEADLINE_S = 10.0
RETRY_S = 2.0


class LeaseLost(CannotBeDone):
    """Another operator may be working by now; this one has to end."""


def default_identity() -> str:
    """Our identity. In a pod its name: a restarted container then holds its lease still, and a pod cannot run twice."""
    return socket.gethostname() if in_cluster() else f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


class Lease:
    """A lease in one namespace."""

    def __init__(self, kube: Kube, namespace: str, identity: str, *, name: str = NAME) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self.identity = identity
        self._seen: tuple[str, float] = ("", 0.0)
        """Resource version, and when we saw it first."""
        self._renewed_s: float | None = None

    @property
    def age_s(self) -> float | None:
        """Seconds since the last renewal; None while we do not hold it."""
        return None if self._renewed_s is None else asyncio.get_running_loop().time() - self._renewed_s

    async def acquire(self) -> None:
        """Wait until we hold it."""
        waited_for = None
        while True:
            try:
                holder = await self._try()
            except Conflict:
                continue  # another operator was faster; find out which
            except KubeError as error:
                if not error.transient:
                    raise
                holder = f"the API server: {error}"
            if holder is None:
                return
            if holder != waited_for:
                logger.info("lease %s/%s: waiting for %s", self._namespace, self._name, holder)
                waited_for = holder
            await asyncio.sleep(RETRY_S)

    async def keep(self) -> None:
        """Renew it until it is lost. Raises LeaseLost."""
        while True:
            await asyncio.sleep(RENEW_S)
            try:
                async with asyncio.timeout(DEADLINE_S - RENEW_S):
                    holder = await self._try()
            except (KubeError, TimeoutError) as error:
                holder = None
                logger.warning("lease %s/%s not renewed: %s", self._namespace, self._name, error or "no answer in time")
            if holder is not None:
                raise LeaseLost(f"lease {self._namespace}/{self._name} was taken by {holder}")
            if (self.age_s or 0.0) > DEADLINE_S:
                raise LeaseLost(f"lease {self._namespace}/{self._name} could not be renewed for {self.age_s:.0f} s")

    async def release(self) -> None:
        """Release it, so that the next operator need not wait until it expires."""
        if self._renewed_s is None:
            return
        self._renewed_s = None
        try:
            lease = await self._kube.get(LEASE, self._name, self._namespace)
            if lease is not None and lease["spec"].get("holderIdentity") == self.identity:
                await self._write(lease, holder="")
        except KubeError as error:
            logger.warning("lease %s/%s not released: %s", self._namespace, self._name, error)

    async def _try(self) -> str | None:
        """Take or renew it. None where we hold it now, else the holder."""
        asked_s = asyncio.get_running_loop().time()
        lease = await self._kube.get(LEASE, self._name, self._namespace)
        holder = str(((lease or {}).get("spec") or {}).get("holderIdentity") or "")
        if lease is not None and holder not in ("", self.identity) and not self._has_run_out(lease):
            return holder
        await self._write(lease, holder=self.identity)
        self._renewed_s = asked_s
        return None

    def _has_run_out(self, lease: dict[str, Any]) -> bool:
        now_s = asyncio.get_running_loop().time()
        version = lease["metadata"]["resourceVersion"]
        if self._seen[0] != version:
            self._seen = (version, now_s)
        return now_s - self._seen[1] > float(lease["spec"].get("leaseDurationSeconds") or DURATION_S)

    async def _write(self, lease: dict[str, Any] | None, *, holder: str) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (lease or {}).get("spec") or {}
        taken = holder != before.get("holderIdentity")
        document: dict[str, Any] = {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": {
                "holderIdentity": holder,
                "leaseDurationSeconds": round(DURATION_S),
                "renewTime": now,
                "acquireTime": now if taken else before.get("acquireTime", now),
                "leaseTransitions": int(before.get("leaseTransitions") or 0) + taken,
            },
        }
        if lease is None:
            await self._kube.create(document)
            return
        # Compare and swap: two who take it at the same moment do not both get it.
        document["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        await self._kube.apply(document, manager=NAME)
