"""What a live cluster offers a service: its profiles, and the GPUs that others hold or are promised. Only reads."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from uellm.api import LLMService
from uellm.errors import CannotBeDone, PlanError
from uellm.hardware import DRA
from uellm.planner.request import LeftOut, NodeOffer

if TYPE_CHECKING:  # these need the package of the operator
    from uellm.kube import Kube
    from uellm.reconcile.cache import Cache


class Offered(NamedTuple):
    """The nodes that the service's pods may go to, as offered to this service, and sentences about the others."""

    nodes: tuple[NodeOffer, ...]
    left_out: tuple[LeftOut, ...]
    would_join: tuple[NodeOffer, ...] = ()
    """Classes of nodes that may join."""
    hardware: tuple[NodeOffer, ...] = ()
    """The nodes as if every GPU were free, where the service's pods may get GPUs that others hold."""
    claims: bool = True
    """Pods can claim GPUs by DRA. A file of profiles does not tell: then they can, where the service asks for it."""


def offered_by_cluster(service: LLMService, *, kubeconfig: str | None, context: str | None) -> Offered:
    """Read the cluster as the operator observes it. Raises KubeError; CannotBeDone if no cluster is configured."""
    _check_packages()
    return asyncio.run(_ask(service, kubeconfig, context))


def namespace_of_context(*, kubeconfig: str | None, context: str | None) -> str:
    """The namespace that the kubeconfig's context names; empty where it names none. Raises as `offered_by_cluster`."""
    _check_packages()
    from uellm.kube.config import namespace

    return namespace(kubeconfig, context)


def _check_packages() -> None:
    try:
        import uellm.kube  # noqa: F401
    except ModuleNotFoundError as error:
        raise CannotBeDone(
            f"the Python package {error.name!r} is missing, by which a cluster is asked: pip install "
            "'uellm-operator[controller]', or give --profiles"
        ) from error


async def _ask(service: LLMService, kubeconfig: str | None, context: str | None) -> Offered:
    from uellm.api.names import SERVICE_LABEL
    from uellm.kube import GPUNODECLASS, GPUNODEPROFILE, LLMSERVICE, NODE, POD, Kube
    from uellm.reconcile.cache import Cache
    from uellm.reconcile.kueue import may_displace
    from uellm.reconcile.names import Key
    from uellm.reconcile.planning.allocation import may_claim, waits_for_nodes
    from uellm.reconcile.planning.eligible_nodes import reachable, verdicts
    from uellm.reconcile.planning.ledger import claims_of_others, hardware_offers, offers
    from uellm.reconcile.planning.node_classes import doubts, with_nodes, would_join

    cache = Cache()
    async with await Kube.connect(kubeconfig=kubeconfig, context=context) as kube:
        kinds = ((GPUNODEPROFILE, ""), (GPUNODECLASS, ""), (LLMSERVICE, ""), (NODE, ""), (POD, SERVICE_LABEL))
        for kind, selector in kinds:
            cache.replace(kind, await kube.list(kind, label_selector=selector), before={})
        await _read_claims(kube, cache, service)
    key = Key(service.namespace, service.name)
    nodes = cache.profiled_nodes()
    everyone = offers(nodes, claims_of_others(cache, key, datetime.now(UTC)), cache.pods(key))
    judged = verdicts((node.facts for node in nodes), cache.node, service.spec.template.to_dict())
    offered, left_out = reachable(everyone, judged)
    known = cache.node_classes() if waits_for_nodes(service) else ()
    classes, unusable = would_join(known, doubts(known, with_nodes(nodes, cache.node)), service)
    runs = any(pod["spec"].get("nodeName") for pod in cache.pods(key))
    document = {"metadata": service.metadata, "spec": {"template": service.spec.template.to_dict()}}
    hardware = reachable(hardware_offers(nodes), judged)[0] if may_displace(document) and not runs else ()
    return Offered(offered, (*left_out, *unusable), classes, hardware, may_claim(offered, cache.dra))


async def _read_claims(kube: Kube, cache: Cache, service: LLMService) -> None:
    """Read what claims hold and may ask for, where the API server has it. Raises PlanError where claims cannot work."""
    from uellm.kube import Forbidden, NotFound
    from uellm.kube.kinds import DEVICECLASS, RESOURCECLAIM, RESOURCECLAIMTEMPLATE, RESOURCESLICE
    from uellm.reconcile.optional_kinds import Availability

    for kind in (DEVICECLASS, RESOURCESLICE, RESOURCECLAIM):
        try:
            cache.replace(kind, await kube.list(kind), before={})
        except NotFound:
            cache.available[kind] = Availability.NOT_INSTALLED
        except Forbidden:
            cache.available[kind] = Availability.FORBIDDEN
        else:
            cache.available[kind] = Availability.SERVED
    # A plan reads no templates.
    cache.available[RESOURCECLAIMTEMPLATE] = cache.available[RESOURCECLAIM]
    obstacle = cache.dra.obstacle()
    if service.spec.placement.allocation == DRA and obstacle is not None:
        raise PlanError(obstacle.reason, obstacle.message)
