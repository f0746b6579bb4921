"""The objects that an LLMService consists of: one kind a file, each a pure function of the desired state.

Nothing here plans: the plan comes rendered (`uellm.reconcile.rendered_plan`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.reconcile.children.claim_template import claim_template
from uellm.reconcile.children.configmap import config_digest, config_files, configmap
from uellm.reconcile.children.deployment import deployment, frozen
from uellm.reconcile.children.desired_state import DesiredState, Images, PinnedTemplate
from uellm.reconcile.children.devices import devices_configmap
from uellm.reconcile.children.former import FormerConfig
from uellm.reconcile.children.leader_worker_set import leader_worker_set
from uellm.reconcile.children.pdb import pdb
from uellm.reconcile.children.revision import Revision, make_revision, read_revision
from uellm.reconcile.children.service import service
from uellm.reconcile.drift import signed

__all__ = [
    "DesiredState",
    "FormerConfig",
    "Images",
    "PinnedTemplate",
    "Revision",
    "access_to_pods",
    "children",
    "claim_templates",
    "config_digest",
    "config_files",
    "configmap",
    "frozen",
    "make_revision",
    "read_revision",
]


def claim_templates(
    document: Mapping[str, Any], revision: Revision | None, claim_spec: Mapping[str, Any] | None
) -> tuple[dict[str, Any], ...]:
    """The ResourceClaimTemplate of a revision whose pods claim their GPUs by `claim_spec`; else none."""
    if revision is None or claim_spec is None:
        return ()
    return (claim_template(document, revision.name, claim_spec),)


def children(desired: DesiredState) -> tuple[dict[str, Any], ...]:
    """Every child in the order of writing: the Deployment or LeaderWorkerSet last, because its pods need the others.

    `desired` holds a revision, or the pinned template of pods that have none.
    """
    revisions = () if desired.revision is None else (desired.revision.manifest(desired.document),)
    advice = (devices_configmap(desired),) if desired.devices_json else ()
    claims = claim_templates(desired.document, desired.revision, desired.claim_spec)
    pods = leader_worker_set(desired) if desired.nodes > 1 else deployment(desired)
    access = access_to_pods(desired.document, desired.nodes, desired.stand_in.budget)
    return tuple(signed(child) for child in (configmap(desired), *revisions, *claims, *advice, *access, pods))


def access_to_pods(document: Mapping[str, Any], nodes: int, budget: int) -> tuple[dict[str, Any], ...]:
    """The Service of pods that span so many nodes, and how many of them may be evicted at a time."""
    return (service(document, nodes), pdb(document, budget))
