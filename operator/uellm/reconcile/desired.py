"""From what was observed and planned to the desired state of a service's children. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from uellm.api.sidecar_document import ToldAdapters
from uellm.kube.kinds import DEPLOYMENT
from uellm.planner.handover.device_facts import joined, names_for_facts
from uellm.planner.result import Plan
from uellm.reconcile.adapters import are_known, entries, handed_over, still_wanted
from uellm.reconcile.children import (
    DesiredState,
    Images,
    PinnedTemplate,
    Revision,
    access_to_pods,
    claim_templates,
    configmap,
    frozen,
    make_revision,
)
from uellm.reconcile.children.desired_state import NodeCopier
from uellm.reconcile.children.former import FORMER_SECTIONS, FormerConfig
from uellm.reconcile.children.revision import engine_document
from uellm.reconcile.children.rollout import Surge
from uellm.reconcile.children.stand_in import stand_in
from uellm.reconcile.download.on_nodes import node_copier
from uellm.reconcile.dra.left_out import without
from uellm.reconcile.drift import signed
from uellm.reconcile.model_claim import NodeCache, is_on_nodes
from uellm.reconcile.names import config_name, revision_label
from uellm.reconcile.observe import Observed
from uellm.reconcile.planning.adapters import adapter_slots
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.rendered_plan import RenderedPlan
from uellm.reconcile.revisions import inputs_of, kept_revision, shape_of


def desired_state(
    observed: Observed,
    plan: Plan,
    rendered: RenderedPlan | None,
    images: Images,
    surge: Surge,
    node_cache: NodeCache | None = None,
) -> DesiredState:
    """The children of a service with this plan. Raises BadInput where the user's pod template cannot be merged.

    The pods keep their revision where spec and plan call for no other; else one is made from the rendered plan.
    """
    assert observed.service is not None
    inputs = inputs_of(plan)
    desired = DesiredState(
        observed.document,
        observed.service,
        rendered,
        _images(observed, images),
        observed.replicas,
        observed.spec_mark,
        observed.children.get(DEPLOYMENT),
        surge,
        stand_in(observed.deployment, observed.replicas, living(observed.pods), observed.leaving_nodes, surge),
        devices_json=_devices_json(observed, plan),
        inputs=inputs,
        former=observed.former_config,
        compiled=observed.download.compiled,
        copier=_copier(observed, node_cache),
    )
    if (pinned := _pinned(observed, plan)) is not None:
        former_images = Images.from_json(observed.pinned_images or "") or images
        former = desired.former or _former(desired)
        adapters = adapters_told(observed, plan, "")
        return dataclasses.replace(desired, pinned=pinned, images=former_images, former=former, adapters=adapters)
    kept = kept_revision(observed, plan)
    revision = make_revision(desired) if kept is None else kept.marked(observed.spec_mark, inputs)
    adapters = adapters_told(observed, plan, revision.name)
    claim_spec = _claim_spec(observed, revision)
    return dataclasses.replace(desired, revision=revision, claim_spec=claim_spec, adapters=adapters)


def left_alone(observed: Observed, surge: Surge) -> list[dict[str, Any]]:
    """The children while the spec cannot be carried out: the pods stay, and so does what they need.

    A wrong spec does not take down pods that serve. What reloads still reaches them, clients find them, and their
    nodes can be emptied. No further stand-in is started; one that is under way is waited for as long as `surge` allows,
    and so is the additional pod of a rollout. Nothing is made for a service without pods. Names that others have taken
    meanwhile are the writer's to find out.
    """
    if observed.workload is None:
        return []
    kind, live = observed.workload
    nodes = 1 if kind == DEPLOYMENT else int(live["spec"]["leaderWorkerTemplate"]["size"])
    extra = stand_in(
        observed.deployment,
        observed.replicas,
        living(observed.pods),
        observed.leaving_nodes,
        Surge(hopeless=surge.hopeless),
    )
    made = [] if not _can_reload(observed) else [configmap(reloaded(observed))]
    revision = observed.revision
    if revision is not None:
        made.append(revision.manifest(observed.document))
        if observed.dra.unwritable() is None:
            made += claim_templates(observed.document, revision, _claim_spec(observed, revision))
    made += access_to_pods(observed.document, nodes, extra.budget)
    # As an object of a list, it may not say what it is.
    live = {**live, "apiVersion": kind.api_version, "kind": kind.kind}
    return [*map(signed, made), frozen(observed.document, live, observed.replicas, extra, surge)]


def _can_reload(observed: Observed) -> bool:
    """Whether all that pods read in the ConfigMap is known: parts of it are kept only there."""
    if observed.service is None:
        return False
    kept_there = observed.is_former or observed.service.spec.model.adapters
    return config_name(observed.key.name) in observed.configmaps or not kept_there


def _copier(observed: Observed, node_cache: NodeCache | None) -> NodeCopier | None:
    assert observed.service is not None
    if node_cache is None or not is_on_nodes(observed.service):
        return None
    return node_copier(observed.service, observed.facts, node_cache)


def _claim_spec(observed: Observed, revision: Revision) -> Mapping[str, Any] | None:
    return None if revision.claim_spec is None else without(revision.claim_spec, observed.nodes)


def _devices_json(observed: Observed, plan: Plan) -> str:
    """Facts of the GPUs of nodes on which a replica runs or may run."""
    nodes = {each.facts.name: each for each in observed.nodes}
    own = sorted({pod["spec"].get("nodeName") or "" for pod in observed.pods})
    chosen = names_for_facts([*own, *plan.nodes], nodes)
    return joined({name: nodes[name].json for name in chosen}, plan.devices)


def reloaded(observed: Observed) -> DesiredState:
    """The state of the parts that reload: the spec as it is now, whether or not it can be planned."""
    assert observed.service is not None
    no_images = Images("", "", "")
    return DesiredState(
        observed.document,
        observed.service,
        None,
        no_images,
        observed.replicas,
        "",
        former=observed.former_config,
        adapters=still_wanted(observed.service, observed.told_adapters),
    )


def adapters_told(observed: Observed, plan: Plan, revision: str) -> ToldAdapters:
    """What the sidecars are told: the service's adapters, once they are known, are there, and the engines have room.

    `revision`: of the pods that are wanted.
    """
    assert observed.service is not None
    if not observed.service.spec.model.adapters:
        return ToldAdapters()
    told = still_wanted(observed.service, observed.told_adapters)
    known = observed.model.obstacle is None and are_known(observed.service, observed.facts)
    room = adapter_slots(observed.service, observed.facts, plan.adapters)
    if known and room == plan.adapters and observed.download.complete:
        return handed_over(told, entries(observed.service, observed.facts), revision, _others(observed, revision))
    return told


def _others(observed: Observed, revision: str) -> frozenset[str]:
    """The revisions, besides the one that is wanted, of which there are pods or of which some may be made."""
    if not revision:
        return frozenset()  # pods of a release without revisions stay as they are
    found = {revision_label(pod) for pod in living(observed.pods)}
    if observed.deployment is not None:
        found.add(revision_label(observed.deployment["spec"]["template"]))
    return frozenset(found - {revision})


def _images(observed: Observed, current: Images) -> Images:
    chosen = observed.service.spec.engine.image if observed.service else None
    return current._replace(engine=chosen) if chosen else current


def _pinned(observed: Observed, plan: Plan) -> PinnedTemplate | None:
    """The template of pods of a release without revisions, where spec and plan still are those of the pods."""
    if not observed.is_former or observed.spec_changed:
        return None
    pinned = PinnedTemplate.from_json(observed.pinned_template or "")
    if pinned is None:
        return None
    # The shape named nodes too; now no pod is bound to a node by name.
    return pinned if pinned.shape.partition(" on ")[0] == shape_of(plan) else None


def _former(desired: DesiredState) -> FormerConfig:
    """The files of such pods, written anew because somebody deleted them."""
    document = engine_document(desired).to_dict()
    return FormerConfig(desired.plan.plan_json, {name: document[name] for name in FORMER_SECTIONS if name in document})
