"""The GPUs that each service was promised, and what the nodes offer to a service beside those. It plans nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from uellm.api.llmservice import LLMService
from uellm.kube.kinds import DEPLOYMENT, LEADERWORKERSET
from uellm.models import Architecture
from uellm.planner.request import LeftOut, NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.cache import Cache
from uellm.reconcile.engine_image import STOCK_ENGINE_IMAGE
from uellm.reconcile.kueue import may_displace
from uellm.reconcile.names import Key, deployment_name, key_of, revision_label
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.allocation import as_allocatable, may_claim, waits_for_nodes
from uellm.reconcile.planning.choose import Choice
from uellm.reconcile.planning.eligible_nodes import IneligibleNode, reachable, selectable, verdicts
from uellm.reconcile.planning.ledger import (
    Claim,
    Commitment,
    Ledger,
    by_name,
    claim,
    commitment_of,
    commitment_to,
    hardware_offers,
    known_nodes,
    seats,
    suits,
)
from uellm.reconcile.planning.node_classes import doubts, with_nodes, would_join
from uellm.reconcile.planning.refused_pods import RefusedPods
from uellm.reconcile.planning.request import has_own_image, plan_request
from uellm.reconcile.planning.rooms import Rooms
from uellm.reconcile.planning.stranded import all_placed
from uellm.reconcile.profiled_node import ProfiledNode
from uellm.reconcile.revisions import inputs_of
from uellm.reconcile.scaling.scaling import wanted_replicas
from uellm.step_basis import Correction

_WORKLOADS = (DEPLOYMENT, LEADERWORKERSET)
_HELPED_BY_GPUS = ("NoFit", "NeedsExactDevices")


class Promises:
    """The ledger, and the cluster that it is about."""

    def __init__(
        self,
        cache: Cache,
        corrections: Callable[[], tuple[Correction, ...]] = tuple,
        engine_image: str = STOCK_ENGINE_IMAGE,
    ) -> None:
        """`corrections`: the step times that were measured; `engine_image`: that of services which name none."""
        self._cache = cache
        self._corrections = corrections
        self._engine_image = engine_image
        self._ledger = Ledger()
        self._rooms = Rooms()
        self._verdicts: dict[str, Mapping[str, IneligibleNode]] = {}
        """Of the nodes as they are, by pod template."""
        self._verdicts_of = -1
        """The version of the hardware that they are about."""
        self._doubts: Mapping[str, str] = {}
        """Of classes of nodes, by name."""
        self._doubts_of = -1
        """The version of the hardware that they are about."""
        self._running: dict[Key, tuple[Plan, Commitment]] = {}
        """The plans that Deployments carry out, and what they need."""
        self._refused: set[Key] = set()
        """Services whose pods stay as they are, because their spec was changed and is refused."""
        self._refused_pods = RefusedPods()
        self._short: set[Key] = set()
        """Services to which nothing is promised besides the pods that are there: the API server refuses others."""
        self._taking: set[Key] = set()
        """Services that fit on no free GPUs, and are planned on those that others hold."""
        self._another: dict[Key, tuple[tuple[int, int, int], str]] = {}
        """The last answers of `room_for_another`, and the versions that they were given at."""

    @property
    def version(self) -> int:
        """Grows with every change of a promise."""
        return self._ledger.version

    def restore(self) -> None:
        """Enter the plans that the services' statuses hold: what the operator promised before it was restarted."""
        nodes = known_nodes(self._cache)
        for document in self._cache.services():
            if (commitment := commitment_of(document, nodes)) is not None:
                self._ledger.commit(key_of(document), commitment)

    def enter(self, key: Key, plan: Plan) -> None:
        """Promise the GPUs of a plan to a service."""
        self._refused.discard(key)
        self._ledger.commit(key, commitment_to(plan, known_nodes(self._cache)))

    def runs(self, observed: Observed, chosen: Plan | None = None) -> None:
        """Take note of the plan that the service's Deployment carries out: its pods may have to find a place again.

        `chosen`: the plan that was chosen last; where it is the same, one of them is kept.
        """
        plan, key = observed.incumbent, observed.key
        if plan == chosen:
            plan = chosen
        known = self._running.get(key)
        if plan is None or (known is not None and known[0] == plan) or not _is_carried_out(plan, observed):
            return
        commitment = commitment_to(plan, known_nodes(self._cache))
        self._running[key] = plan, commitment
        if (self._ledger.get(key) if known is None else known[1]) != commitment:
            self._ledger.touch(key)

    def refuses(self, observed: Observed, now: datetime) -> bool:
        """Take note of whether pods of the service are refused. Return whether GPUs promised to them became free."""
        key, short = observed.key, self._refused_pods.look(observed, now)
        if short == (key in self._short):
            return False
        self._short ^= {key}
        self._ledger.touch(key)
        return short

    def refused_in_s(self, key: Key, now: datetime) -> float | None:
        """In how many seconds nothing is promised to refused pods any more; None where none are, or nothing is."""
        return self._refused_pods.due_in_s(key, now)

    def end(self, key: Key, *, refused: bool = False) -> None:
        """The service has no plan: its pods keep their GPUs, and nothing is promised to further replicas.

        `refused`: its spec was changed. The Deployment stays, so the places of its replicas are promised to them.
        """
        if refused and key in self._running and self._deployed(key) is not None:
            self._ledger.commit(key, self._running[key][1])
            if key not in self._refused:
                self._refused.add(key)
                self._ledger.touch(key)
            return
        self._refused.discard(key)
        commitment = self._ledger.get(key)
        if commitment is not None and self._cache.pods(key):
            self._ledger.commit(key, commitment._replace(nodes=(), needs=()))
        else:
            self._ledger.release(key)

    def withdraw(self, key: Key) -> None:
        """Promise nothing to the service, whatever its pods hold."""
        self._refused.discard(key)
        self._ledger.release(key)

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self.withdraw(key)
        self._running.pop(key, None)
        self._refused_pods.forget(key)
        self._short.discard(key)
        self._taking.discard(key)
        self._another.pop(key, None)

    def has_own_image(self, service: LLMService) -> bool:
        """Whether the service's engine is not the stock one."""
        return has_own_image(service, self._engine_image)

    def request(self, observed: Observed, architecture: Architecture) -> PlanRequest:
        """The planner's request for a service, with what the nodes offer to it now."""
        assert observed.service is not None
        offers = hardware_offers(self._cache.profiled_nodes()) if self._on_taken(observed) else self._offers(observed)
        nodes, left_out = reachable(offers, self._judged(observed))
        # A service whose pods all have nodes does not wait for one, so a new class does not matter.
        on_nodes = observed.incumbent is not None and not observed.incumbent.node_classes
        alone = not waits_for_nodes(observed.service) or (on_nodes and all_placed(observed))
        classes, unusable = ((), ()) if alone else self._classes(observed)
        request = plan_request(
            observed.service,
            architecture,
            nodes,
            left_out=(*left_out, *unusable),
            would_join=classes,
            facts=observed.facts,
            corrections=self._corrections(),
            engine_image=self._engine_image,
            slots=None if observed.spec_changed or observed.incumbent is None else observed.incumbent.adapters,
        )
        return as_allocatable(request, claims=may_claim(nodes, observed.dra))

    def may_take(self, observed: Observed, choice: Choice) -> bool:
        """Whether GPUs that others hold may help: it fits on no free ones, and its pods may displace others."""
        fits_nowhere = choice.failure is not None and choice.failure.reason in _HELPED_BY_GPUS
        return fits_nowhere and observed.key not in self._taking and _may_be_on_taken(observed)

    def take(self, key: Key) -> None:
        """Plan the service on GPUs that others hold, from now on until its pods have nodes."""
        self._taking.add(key)

    def _on_taken(self, observed: Observed) -> bool:
        """Whether the service is planned as if every GPU were free: until its pods have nodes, or find none."""
        if not _may_be_on_taken(observed):
            self._taking.discard(observed.key)
        return observed.key in self._taking and observed.unschedulable_since is None

    def _classes(self, observed: Observed) -> tuple[tuple[NodeOffer, ...], tuple[LeftOut, ...]]:
        """The classes of nodes that may join for the service, and the others."""
        assert observed.service is not None
        classes = self._cache.node_classes()
        if self._doubts_of != self._cache.hardware_version:
            self._doubts = doubts(classes, with_nodes(self._cache.profiled_nodes(), self._cache.node))
            self._doubts_of = self._cache.hardware_version
        return would_join(classes, self._doubts, observed.service)

    def hardware(self, observed: Observed) -> tuple[NodeOffer, ...]:
        """The nodes of the service's cluster as if every GPU were free and every node open."""
        return selectable(hardware_offers(self._cache.profiled_nodes()), self._judged(observed))

    def room_is_gone(self, observed: Observed, request: PlanRequest, plan: Plan | None) -> bool:
        """Whether fewer replicas of a new plan find room than at the time of its request, and too few for the service.

        `plan`: the answer to `request`.
        """
        if plan is None or plan == observed.incumbent:
            return False
        nodes = by_name(self._cache.profiled_nodes())
        commitment = commitment_to(plan, known_nodes(self._cache))
        named = {
            offer.node.name: nodes[offer.node.name]
            for offer in request.nodes
            if offer.node.name in nodes and suits(commitment, offer.node.name, nodes)
        }
        before = _homes(request.nodes, commitment, named)
        after = _homes(self._offers(observed), commitment, named)
        return after < min(before, max(1, observed.replicas) * commitment.pods)

    def room_for_another(self, observed: Observed) -> str:
        """A node that has room for a replica besides those that run; empty for none."""
        versions = (self._cache.hardware_version, self._cache.room_version, self._ledger.version)
        known = self._another.get(observed.key)
        if known is None or known[0] != versions:
            known = self._another[observed.key] = (versions, self._room_for_another(observed))
        return known[1]

    def _room_for_another(self, observed: Observed) -> str:
        commitment = self._ledger.get(observed.key)
        if commitment is None:
            return ""
        self._count_changes()
        nodes, _ = reachable(self._rooms.offers_beside_all(), self._judged(observed))
        known = by_name(self._cache.profiled_nodes())
        fitting = (
            offer.node.name
            for offer in nodes
            if suits(commitment, offer.node.name, known) and seats(commitment, known[offer.node.name], offer)
        )
        return next(fitting, "")

    def _offers(self, observed: Observed) -> tuple[NodeOffer, ...]:
        """What every node offers to the service."""
        self._count_changes()
        return self._rooms.offers(observed.key, self._cache.pods(observed.key))

    def _count_changes(self) -> None:
        """Count anew what has changed in the cluster and in the ledger."""
        changes = self._cache.take_changes()
        if changes.nodes:
            self._rooms.set_nodes(self._cache.profiled_nodes(), changes.nodes)
        for key in changes.services:
            self._rooms.set_claim(key, self._claim(key))
        # In the order in which they were made.
        for key in self._ledger.take_changed():
            self._rooms.set_claim(key, self._claim(key))

    def _claim(self, key: Key) -> Claim | None:
        commitment, document = self._ledger.get(key), self._cache.service(key)
        if commitment is None or document is None:
            return None
        replicas, deployed = wanted_replicas(document), self._deployed(key)
        if deployed is not None and key in self._refused:
            replicas = min(replicas, deployed)
        elif deployed is not None and (commitment.nodes or commitment.needs) and key in self._running:
            # Until a new plan is carried out, a pod that is evicted comes back as it was.
            commitment = max(commitment, self._running[key][1], key=lambda each: each.gpus * each.pods)
        pods = self._cache.pods(key)
        # A pod may have gone since the last pass of the service, and another may come in its place.
        grows = key not in self._short or not self._refused_pods.lost_none(key, pods)
        return claim(commitment, replicas, pods, grows=grows)

    def _deployed(self, key: Key) -> int | None:
        """Replicas of the service's Deployment, or of its LeaderWorkerSet; None where there is neither."""
        found = (self._cache.get(kind, deployment_name(key.name), key.namespace) for kind in _WORKLOADS)
        workload = next(filter(None, found), None)
        return None if workload is None else int(workload["spec"].get("replicas", 1))

    def _judged(self, observed: Observed) -> Mapping[str, IneligibleNode]:
        """The nodes on which the service's pods do not start."""
        assert observed.service is not None
        if self._verdicts_of != self._cache.hardware_version:
            self._verdicts, self._verdicts_of = {}, self._cache.hardware_version
        template = json.dumps(observed.document["spec"].get("template"), sort_keys=True)
        if template not in self._verdicts:
            facts = (node.facts for node in self._cache.profiled_nodes())
            own = observed.service.spec.template.to_dict()
            self._verdicts[template] = verdicts(facts, self._cache.node, own, self._cache.stale_profiles)
        return self._verdicts[template]


def _homes(offered: Iterable[NodeOffer], commitment: Commitment, nodes: Mapping[str, ProfiledNode]) -> int:
    """Replicas for which there is room on these nodes."""
    return sum(seats(commitment, nodes[offer.node.name], offer) for offer in offered if offer.node.name in nodes)


def _is_carried_out(plan: Plan, observed: Observed) -> bool:
    """Whether the Deployment is of this plan, also where the spec has changed since and was refused."""
    if observed.deployment is None:
        return False
    revision = observed.revisions.get(revision_label(observed.deployment["spec"]["template"]))
    return revision is not None and revision.inputs == inputs_of(plan)


def _may_be_on_taken(observed: Observed) -> bool:
    """Whether it can be planned on GPUs that others hold: not while its own pods run where an earlier plan put them."""
    return may_displace(observed.document) and (observed.incumbent is None or not all_placed(observed))
