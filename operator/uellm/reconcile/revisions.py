"""Which revision a service's pods keep, which it may forget, and which plan a revision is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from uellm.planner.result import Plan
from uellm.reconcile.children.revision import Revision, read_revision
from uellm.reconcile.drift import digest
from uellm.reconcile.names import Key, revision_label
from uellm.reconcile.observe import Observed

HISTORY = 3
"""Revisions that are kept besides those in use, as many as old ReplicaSets."""


def inputs_of(plan: Plan) -> str:
    """Digest of the part of a plan that pods are built from, the same in every version of the operator."""
    return digest(
        {
            "shape": shape_of(plan),
            "requires": [[stage.memory_bytes, stage.product] for stage in plan.stages],
            "sequences": plan.max_num_seqs,
            "batchedTokens": plan.max_num_batched_tokens,
            "kvCacheBytes": plan.kv_cache_bytes,
            "kvCacheTokens": plan.kv_cache_tokens_required,
            **({} if plan.adapters is None else {"adapters": plan.adapters.to_dict()}),
            **({"allocation": plan.allocation} if plan.claims else {}),
            **({"nodes": plan.nodes_per_replica} if plan.nodes_per_replica > 1 else {}),
        }
    )


def shape_of(plan: Plan) -> str:
    """The shape of a plan, in the form in which releases without revisions stored it too."""
    layers = ",".join(str(count) for count in plan.layers)
    return f"tp{plan.tensor} pp{plan.pipeline} layers {layers}"


def kept_revision(observed: Observed, plan: Plan) -> Revision | None:
    """The revision that the pods keep with this plan; None where spec or plan call for another.

    A pod that is given the revision finds the very content that was frozen: nothing is rendered for it again.
    """
    revision = observed.revision
    if revision is None or observed.spec_changed or revision.inputs != inputs_of(plan):
        return None
    return revision


class KnownRevisions:
    """Revisions as they were when they were first seen: what somebody deletes or edits is restored from here."""

    def __init__(self) -> None:
        self._by_key: dict[Key, dict[str, Revision]] = {}

    def of(self, observed: Observed) -> Mapping[str, Revision]:
        """The revisions of a service that exist or are in use, by name."""
        known = self._by_key.setdefault(observed.key, {})
        present = {name: each for each in observed.configmaps.values() for name in (revision_label(each),) if name}
        for name, configmap in present.items():
            if name not in known and (revision := read_revision(configmap)) is not None:
                known[name] = revision
        for name in known.keys() - present.keys() - in_use(observed):
            del known[name]
        return dict(known)

    def put(self, key: Key, revision: Revision) -> None:
        """Take note of a revision that was written."""
        self._by_key.setdefault(key, {})[revision.name] = revision

    def forget(self, key: Key) -> None:
        """The service is gone."""
        self._by_key.pop(key, None)


def in_use(observed: Observed) -> set[str]:
    """Names of the revisions that the status, the Deployment or a pod refers to."""
    labelled = [observed.deployment["spec"]["template"]] if observed.deployment else []
    named = {revision_label(each) for each in (*labelled, *observed.pods)}
    return {name for name in (*named, observed.status.get("revision")) if name}


def superseded(observed: Observed) -> Sequence[Mapping[str, Any]]:
    """The ConfigMaps of revisions that nothing seems to need, the last HISTORY of them excepted; the oldest first."""
    used = in_use(observed)
    unused = [each for each in observed.configmaps.values() if (name := revision_label(each)) and name not in used]
    # Resource versions are increasing numbers: one that was decided on again was written again.
    unused.sort(key=lambda each: int(each["metadata"]["resourceVersion"]))
    return unused[: max(0, len(unused) - HISTORY)]


def needed_by(replicasets: Iterable[Mapping[str, Any]]) -> set[str]:
    """Names of the revisions that ReplicaSets may start pods from."""
    wanted = (
        each for each in replicasets if each["spec"].get("replicas") or (each.get("status") or {}).get("replicas")
    )
    return {name for each in wanted if (name := revision_label(each["spec"]["template"]))}
