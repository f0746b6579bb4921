"""The Lease that lets one operator work at a time.

The holder renews it. If it cannot for a while, it stops writing before another may start. It goes on trying until then,
and ends only where it has not succeeded:

    0 s   DEADLINE_S        DURATION_S
    |---- writes ---|-- gap --|-- another may hold it from here on
    sent the renewal that succeeded last

`writable_s` is what is left of the first part, and the API client checks it before every write. Clocks of two
machines differ, so another holder's lease has expired when our own clock has not seen it change for its duration. Our
clock goes on while this process or the machine is stopped.

The lease is in the release's namespace, and the operator works for the whole cluster. So it is taken only while nobody
holds one of this name in another namespace: a second release of the chart stands by.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from uellm.errors import CannotBeDone
from uellm.kube import LEASE, Conflict, Forbidden, Kube, KubeError
from uellm.kube.config import in_cluster

logger = logging.getLogger(__name__)

NAME = "uellm-controller"
DURATION_S = 8.0
RENEW_S = 2.0
# Writes end this early, so that the API server has done what was sent before another operator takes the lease.
DEADLINE_S = 5.5
RETRY_S = 1.0
ONE_OPERATOR = "one operator works for the whole cluster; a further release is a gateway alone (operator.enabled=false)"


class LeaseLost(CannotBeDone):
    """Another operator may be working by now; this one has to end."""


def default_identity() -> str:
    """Our identity. In a pod its name: a restarted container then holds its lease still, and a pod cannot run twice."""
    return socket.gethostname() if in_cluster() else f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"


def clock_s() -> float:
    """Seconds since the machine started, those included in which it was suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """A lease in one namespace. `kube` must not depend on `writable_s`, or the lease could never be taken."""

    def __init__(
        self, kube: Kube, namespace: str, identity: str, *, name: str = NAME, clock: Callable[[], float] = clock_s
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._clock = clock
        self.identity = identity
        self._seen: dict[str, tuple[str, float]] = {}
        """Of each namespace's lease the resource version, and when we saw it first."""
        self._looks_elsewhere = True
        self._renewed_s: float | None = None
        self.standing_by = False
        """True while another operator holds it, and we wait."""

    @property
    def age_s(self) -> float | None:
        """Seconds since the last renewal; None while we do not hold it."""
        return None if self._renewed_s is None else self._clock() - self._renewed_s

    def writable_s(self) -> float:
        """Seconds for which we may still write; 0 where another operator may hold the lease."""
        age_s = self.age_s
        return 0.0 if age_s is None else max(0.0, DEADLINE_S - age_s)

    async def acquire(self) -> None:
        """Wait until we hold it."""
        logged = None
        while True:
            waits_for = await self._try()
            if waits_for is None:
                return
            if waits_for != logged:
                logger.info("lease %s/%s: waiting for %s", self._namespace, self._name, waits_for)
                logged = waits_for
            await asyncio.sleep(RETRY_S * random.uniform(0.5, 1.5))

    async def _try(self) -> str | None:
        """Take it where it is free. None where we hold it now, else what we wait for."""
        while True:
            try:
                holder = await self._take()
            except Conflict:
                continue  # another operator was faster; find out which
            except KubeError as error:
                self.standing_by = False
                if not error.transient:
                    raise
                return f"the API server: {error}"
            self.standing_by = holder is not None
            return holder

    async def keep(self) -> None:
        """Renew it until it is lost. Raises LeaseLost."""
        pause_s = RENEW_S
        try:
            while True:
                await asyncio.sleep(pause_s)
                asked_s = self._clock()
                renewed = await self._renew_in_time()
                # Where the API server is slow, the time that it took is part of the pause.
                pause_s = max(0.0, RENEW_S - (self._clock() - asked_s)) if renewed else RETRY_S
        except LeaseLost:
            self._renewed_s = None
            raise

    async def release(self) -> None:
        """Release it, so that the next operator need not wait until it expires."""
        if self._renewed_s is None:
            return
        self._renewed_s = None
        try:
            lease = await self._kube.get(LEASE, self._name, self._namespace)
            if lease is not None and _holder(lease) == self.identity:
                await self._write(lease, holder="")
        except KubeError as error:
            logger.warning("lease %s/%s not released: %s", self._namespace, self._name, error)

    async def _take(self) -> str | None:
        """Take it where it is free. None where we hold it now, else the holder."""
        asked_s = self._clock()
        lease = await self._kube.get(LEASE, self._name, self._namespace)
        if lease is not None and _holder(lease) not in ("", self.identity) and not self._has_run_out(lease):
            return _holder(lease)
        # Not before: the API server reads every Lease of the cluster for it.
        elsewhere = await self._elsewhere()
        if elsewhere is not None:
            return elsewhere
        written = await self._write(lease, holder=self.identity)
        elsewhere = await self._elsewhere()
        if elsewhere is not None:
            # Of two that take theirs at the same moment, at least one comes here. If both do, both try again.
            await self._write(written, holder="")
            return elsewhere
        self._renewed_s = asked_s
        return None

    async def _elsewhere(self) -> str | None:
        """Who holds a lease of this name in another namespace; None where nobody does, or where we may not look."""
        if not self._looks_elsewhere:
            return None
        try:
            leases = await self._kube.list(LEASE, field_selector=f"metadata.name={self._name}")
        except Forbidden as error:
            logger.warning("whether another operator works in this cluster is not known: %s", error)
            self._looks_elsewhere = False
            return None
        for lease in leases:
            namespace = lease["metadata"]["namespace"]
            if namespace != self._namespace and _holder(lease) and not self._has_run_out(lease):
                return f"{_holder(lease)} in namespace {namespace}: {ONE_OPERATOR}"
        return None

    async def _renew_in_time(self) -> bool:
        """Whether it was renewed, by one try."""
        try:
            async with asyncio.timeout(DEADLINE_S - RENEW_S):
                await self._renew()
            return True
        except (KubeError, TimeoutError) as error:
            logger.warning("lease %s/%s not renewed: %s", self._namespace, self._name, error or "no answer in time")
        if (age_s := self.age_s or 0.0) > DURATION_S:
            raise LeaseLost(f"lease {self._namespace}/{self._name} could not be renewed for {age_s:.0f} s")
        return False

    async def _renew(self) -> None:
        asked_s = self._clock()
        lease = await self._kube.get(LEASE, self._name, self._namespace)
        holder = "" if lease is None else _holder(lease)
        if holder != self.identity:
            # Even a lease that is free again is lost: another operator may have held it and written meanwhile.
            raise LeaseLost(f"lease {self._namespace}/{self._name} was taken by {holder or 'another operator'}")
        await self._write(lease, holder=self.identity)
        # One in another namespace leaves this lease as it is, and may work if the renewal came late.
        elsewhere = None if self.writable_s() else await self._elsewhere()
        if elsewhere is not None:
            raise LeaseLost(f"lease {self._namespace}/{self._name} was renewed late, and now works {elsewhere}")
        self._renewed_s = asked_s

    def _has_run_out(self, lease: dict[str, Any]) -> bool:
        now_s = self._clock()
        namespace, version = lease["metadata"]["namespace"], lease["metadata"]["resourceVersion"]
        if self._seen.get(namespace, ("",))[0] != version:
            self._seen[namespace] = (version, now_s)
        return now_s - self._seen[namespace][1] > float(lease["spec"].get("leaseDurationSeconds") or DURATION_S)

    async def _write(self, lease: dict[str, Any] | None, *, holder: str) -> dict[str, Any]:
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
            return await self._kube.create(document)
        # Compare and swap: two who take it at the same moment do not both get it.
        document["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
        return await self._kube.apply(document, manager=NAME)


def _holder(lease: Mapping[str, Any]) -> str:
    return str((lease.get("spec") or {}).get("holderIdentity") or "")
