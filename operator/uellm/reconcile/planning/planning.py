"""Planning of all services together: one at a time, each against what the others were promised.

The ledger is entered the moment a plan is chosen, before it is written anywhere, so the next service in line already
counts with it. A service is planned again when its spec changed, when the hardware did, when a node offers more than
before, or when a replica of it finds no place; a pass for any other reason takes the choice that stands.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import NamedTuple

from uellm.errors import PlanError
from uellm.models import Architecture
from uellm.planner.request import PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.names import Key, key_of
from uellm.reconcile.observe import Observed, wanted_replicas
from uellm.reconcile.planning.choose import STRANDED_AFTER_S, Choice, Evaluation, Failure, choose
from uellm.reconcile.planning.eligible_nodes import reachable
from uellm.reconcile.planning.ledger import (
    Claim,
    Commitment,
    Ledger,
    claim,
    commitment_of,
    generous,
    grew,
    hardware_changed,
    offers,
)
from uellm.reconcile.planning.recorded import recorded
from uellm.reconcile.planning.request import architecture_of, check_environment, plan_request
from uellm.reconcile.planning.worker import Evaluator

# How often GPUs that others left are looked at for a plan that takes fewer of them.
IMPROVE_EVERY_S = 300
# For how long at most a plan waits for the plans of others before it is carried out.
MAKE_WAY_S = 5


class Planned(NamedTuple):
    """The choice, and the question it answers: what is written down of a plan is told from both."""

    choice: Choice
    request: PlanRequest | None


class _Standing(NamedTuple):
    spec_digest: str
    request: PlanRequest
    stranded: bool
    choice: Choice
    since: datetime


class Planning:
    """Plans of all services; to be filled with `restore` before the first `plan`."""

    def __init__(self, cache: Cache, evaluator: Evaluator) -> None:
        self._cache = cache
        self._evaluate = evaluator
        self._ledger = Ledger()
        self._standing: dict[Key, _Standing] = {}
        self._one_at_a_time = asyncio.Lock()
        self._in_line = 0

    def restore(self) -> None:
        """Enter the plans that the services' statuses hold: what an operator before this one promised."""
        for document in self._cache.services():
            if (commitment := commitment_of(document)) is not None:
                self._ledger.commit(key_of(document), commitment)

    async def plan(self, observed: Observed, now: datetime) -> Planned:
        """The plan in force for a service."""
        if observed.service is None:
            return self._failed(observed.key, Failure("InvalidSpec", observed.invalid))
        try:
            check_environment(observed.service)
            architecture = architecture_of(observed.service)
        except PlanError as error:
            return self._failed(observed.key, Failure(error.reason, str(error)))
        incumbent = observed.incumbent
        if observed.suspended and incumbent is not None and not observed.spec_changed:
            # It needs no GPUs now; whether there are some for it is asked when it is to run again.
            self._standing.pop(observed.key, None)
            return Planned(Choice(incumbent), self._request(observed, architecture))
        stranded = self._stranded(observed, now)
        request = self._request(observed, architecture)
        if choice := self._stands(observed, request, now, stranded=stranded):
            return Planned(choice, request)
        async with self._turn():
            request = self._request(observed, architecture)  # others may have been planned meanwhile
            hardware = generous(observed.fleet) if incumbent is not None else ()
            evaluation = await self._evaluate(request, incumbent, hardware)
            evaluation = _on_record(evaluation)
            choice = choose(
                incumbent,
                evaluation,
                spec_changed=observed.spec_changed,
                stranded=stranded,
                objective=request.objective,
            )
            self._enter(observed.key, _Standing(observed.spec_digest, request, stranded, choice, now))
        return Planned(choice, request)

    def has_to_make_way(self, observed: Observed, now: datetime) -> bool:
        """True while others wait to be planned: making pods of this plan would only hold them up. Not for long."""
        standing = self._standing.get(observed.key)
        if observed.deployment is not None or standing is None or not self._in_line:
            return False
        return (now - standing.since).total_seconds() < MAKE_WAY_S

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self._in_line += 1
        try:
            await self._one_at_a_time.acquire()
        finally:
            self._in_line -= 1
        try:
            yield
        finally:
            self._one_at_a_time.release()

    def withdraw(self, key: Key) -> None:
        """The plan cannot be carried out: nobody has to wait for its GPUs."""
        self._ledger.release(key)
        self._standing.pop(key, None)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self.withdraw(key)

    def waiting(self) -> list[Key]:
        """Services without a plan that may get one when others leave."""
        return [key for key, standing in self._standing.items() if standing.choice.plan is None]

    def stranded_in_s(self, observed: Observed, now: datetime) -> float | None:
        """Seconds until a pod that finds no place calls for another plan; None where none waits."""
        since = observed.unschedulable_since
        if since is None:
            return None
        return max(0.0, STRANDED_AFTER_S - (now - _moment(since)).total_seconds())

    def _stranded(self, observed: Observed, now: datetime) -> bool:
        deployment = observed.deployment
        if deployment is not None and observed.replicas and deployment["spec"].get("replicas") == 0:
            return True  # it comes back from suspension: its GPUs may be taken
        return self.stranded_in_s(observed, now) == 0.0

    def _stands(self, observed: Observed, request: PlanRequest, now: datetime, *, stranded: bool) -> Choice | None:
        """The choice of an earlier pass, where nothing has come up since that could change it."""
        standing = self._standing.get(observed.key)
        if standing is None or standing.spec_digest != observed.spec_digest:
            return None
        before, chosen = standing.request, standing.choice.plan
        if chosen is not None and observed.incumbent not in (None, chosen):
            return None
        if dataclasses.replace(request, nodes=()) != dataclasses.replace(before, nodes=()):
            return None
        if stranded and (not standing.stranded or request.nodes != before.nodes):
            return None
        if hardware_changed(before.nodes, request.nodes):
            return None
        # Without a plan, whatever becomes free is news at once. With one it could only be for a better plan, and GPUs
        # come and go all the time.
        patience_s = 0 if chosen is None else IMPROVE_EVERY_S
        recent = (now - standing.since).total_seconds() < patience_s
        return standing.choice if recent or not grew(before.nodes, request.nodes) else None

    def _request(self, observed: Observed, architecture: Architecture) -> PlanRequest:
        assert observed.service is not None
        everyone = offers(observed.fleet, self._claims(observed.key), self._cache.pods(observed.key))
        nodes, left_out = reachable(everyone, self._cache.node, observed.service)
        return plan_request(observed.service, architecture, nodes, left_out=left_out)

    def _claims(self, key: Key) -> list[Claim]:
        claims = []
        for other, commitment in self._ledger.items():
            document = self._cache.service(other)
            if other != key and document is not None:
                claims.append(claim(commitment, wanted_replicas(document), self._cache.pods(other)))
        return claims

    def _enter(self, key: Key, standing: _Standing) -> None:
        self._standing[key] = standing
        if standing.choice.plan is not None:
            self._ledger.commit(key, _commitment(standing.choice.plan))
        else:
            self._give_up(key)

    def _failed(self, key: Key, failure: Failure) -> Planned:
        self._standing.pop(key, None)
        self._give_up(key)
        return Planned(Choice(None, failure), None)

    def _give_up(self, key: Key) -> None:
        """Pods that run keep their GPUs; replicas that do not are promised none any more."""
        commitment = self._ledger.get(key)
        if commitment is not None and self._cache.pods(key):
            self._ledger.commit(key, commitment._replace(nodes=()))
        else:
            self._ledger.release(key)


def _on_record(evaluation: Evaluation) -> Evaluation:
    if evaluation.plan is None:
        return evaluation
    try:
        return evaluation._replace(plan=recorded(evaluation.plan))
    except ValueError as error:
        message = f"the plan has no room in status.plan ({error}); please report this with the LLMService"
        return evaluation._replace(plan=None, failure=Failure("PlannerFailed", message))


def _commitment(plan: Plan) -> Commitment:
    return Commitment(plan.gpus_per_replica, plan.nodes)


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
