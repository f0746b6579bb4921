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
holds one of this name in another release's namespace: a second release of the chart stands by.

Whoever may write in some namespace can make a Lease of this name there. So one counts only where a ClusterRoleBinding
with the chart's label gives rights to a ServiceAccount of its namespace, which only an administrator can make; and for
DURATION_S without a renewal at most, whatever it says itself.
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
from typing import Any, NamedTuple

from uellm.errors import CannotBeDone
from uellm.kube import CLUSTERROLEBINDING, LEASE, Conflict, Forbidden, Kube, KubeError
from uellm.kube.config import in_cluster

logger = logging.getLogger(__name__)

NAME = "uellm-controller"
DURATION_S = 8.0
RENEW_S = 2.0
# Writes end this early, so that the API server has done what was sent before another operator takes the lease.
DEADLINE_S = 5.5
RETRY_S = 1.0
# Between two looks at the leases of all namespaces, by those that stand by for another release.
ELSEWHERE_S = 10.0
OPERATORS = "app.kubernetes.io/name=uellm-operator"
"""The label of the chart's ClusterRoleBinding."""
ONE_OPERATOR = "one operator works for the whole cluster; a further release is a gateway alone (operator.enabled=false)"


class LeaseLost(CannotBeDone):
    """Another operator may be working by now; this one has to end."""


class Awaited(NamedTuple):
    """What we wait for, and when to look again."""

    what: str
    pause_s: float


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
            awaited = await self._try()
            if awaited is None:
                return
            if awaited.what != logged:
                logger.info("lease %s/%s: waiting for %s", self._namespace, self._name, awaited.what)
                logged = awaited.what
            await asyncio.sleep(awaited.pause_s * random.uniform(0.5, 1.5))

    async def _try(self) -> Awaited | None:
        """Take it where it is free. None where we hold it now, else what we wait for."""
        while True:
            try:
                awaited = await self._take()
            except Conflict:
                continue  # another operator was faster; find out which
            except KubeError as error:
                self.standing_by = False
                if not error.transient:
                    raise
                return Awaited(f"the API server: {error}", RETRY_S)
            self.standing_by = awaited is not None
            return awaited

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

    async def _take(self) -> Awaited | None:
        """Take it where it is free. None where we hold it now, else the holder."""
        asked_s = self._clock()
        lease = await self._kube.get(LEASE, self._name, self._namespace)
        if lease is not None and _holder(lease) not in ("", self.identity) and not self._has_run_out(lease):
            return Awaited(_holder(lease), RETRY_S)
        # Not before: the API server reads every Lease of the cluster for it.
        elsewhere = await self._elsewhere()
        if elsewhere is not None:
            return Awaited(elsewhere, ELSEWHERE_S)
        written = await self._write(lease, holder=self.identity)
        elsewhere = await self._elsewhere()
        if elsewhere is not None:
            # Of two that take theirs at the same moment, at least one comes here. If both do, both try again.
            await self._write(written, holder="")
            return Awaited(elsewhere, RETRY_S)
        self._renewed_s = asked_s
        return None

    async def _elsewhere(self) -> str | None:
        """Who holds another release's lease of this name; None where nobody does, or where we may not look."""
        if not self._looks_elsewhere:
            return None
        try:
            leases = await self._kube.list(LEASE, field_selector=f"metadata.name={self._name}")
            held = {each["metadata"]["namespace"]: _holder(each) for each in leases if self._is_held_elsewhere(each)}
            releases = await self._releases() if held else set()
        except Forbidden as error:
            logger.warning("whether another operator works in this cluster is not known: %s", error)
            self._looks_elsewhere = False
            return None
        for namespace in sorted(releases & held.keys()):
            return f"{held[namespace]} in namespace {namespace}: {ONE_OPERATOR}"
        return None

    def _is_held_elsewhere(self, lease: dict[str, Any]) -> bool:
        elsewhere = lease["metadata"]["namespace"] != self._namespace
        return elsewhere and bool(_holder(lease)) and not self._has_run_out(lease)

    async def _releases(self) -> set[str]:
        """The namespaces whose operator has rights in the whole cluster: who can write a Lease cannot add to them."""
        bindings = await self._kube.list(CLUSTERROLEBINDING, label_selector=OPERATORS)
        subjects = (subject for each in bindings for subject in each.get("subjects") or ())
        return {each["namespace"] for each in subjects if each["kind"] == "ServiceAccount"}

    async def _renew_in_time(self) -> bool:
        """Whether it was renewed, by one try."""
        try:
            async with asyncio.timeout(DEADLINE_S - RENEW_S):
                asked_s = await self._renew()
            # The list of all Leases may take long, and has its own time.
            async with asyncio.timeout(DEADLINE_S - RENEW_S):
                await self._check_nobody_took_over()
            self._renewed_s = asked_s
            return True
        except (KubeError, TimeoutError) as error:
            logger.warning("lease %s/%s not renewed: %s", self._namespace, self._name, error or "no answer in time")
        if (age_s := self.age_s or 0.0) > DURATION_S:
            raise LeaseLost(f"lease {self._namespace}/{self._name} could not be renewed for {age_s:.0f} s")
        return False

    async def _renew(self) -> float:
        """Renew it, and return when that was asked for."""
        asked_s = self._clock()
        lease = await self._kube.get(LEASE, self._name, self._namespace)
        holder = "" if lease is None else _holder(lease)
        if holder != self.identity:
            # Even a lease that is free again is lost: another operator may have held it and written meanwhile.
            raise LeaseLost(f"lease {self._namespace}/{self._name} was taken by {holder or 'another operator'}")
        await self._write(lease, holder=self.identity)
        return asked_s

    async def _check_nobody_took_over(self) -> None:
        """Raise LeaseLost where the renewal came so late that another release's operator may have begun to work.

        It leaves our lease as it is. It cannot have begun before DURATION_S; clocks do not run equally fast.
        """
        if (self.age_s or 0.0) <= DURATION_S - RETRY_S:
            return
        elsewhere = await self._elsewhere()
        if elsewhere is not None:
            raise LeaseLost(f"lease {self._namespace}/{self._name} was renewed late, and now works {elsewhere}")

    def _has_run_out(self, lease: dict[str, Any]) -> bool:
        now_s = self._clock()
        namespace, version = lease["metadata"]["namespace"], lease["metadata"]["resourceVersion"]
        if self._seen.get(namespace, ("",))[0] != version:
            self._seen[namespace] = (version, now_s)
        duration_s = float(lease["spec"].get("leaseDurationSeconds") or DURATION_S)
        if namespace != self._namespace:
            duration_s = min(duration_s, DURATION_S)
        return now_s - self._seen[namespace][1] > duration_s

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
