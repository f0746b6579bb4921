"""Which nodes the pods of a service may run on, by the user's pod template and the node's own state. Pure.

A plan for a node that the scheduler refuses would leave its pods Pending for ever. There are two kinds of such nodes:

    other     the user's template excludes them: they are no part of the service's cluster,
    closed    they take no new pods at the moment (cordoned, tainted, not labelled yet), or nobody keeps their profile.
              They offer nothing to a new plan, but pods that run there stay, and the plan that they run is none the
              worse for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from uellm.api.node_labels import LabelKeys, OwnLabelKeys
from uellm.hardware import GPU_RESOURCE, Node
from uellm.planner.request import LeftOut, NodeOffer
from uellm.text import and_more

Object = Mapping[str, Any]
_EXCLUDING = ("NoSchedule", "NoExecute")
_NAMED = 3
MOST_SENTENCES = 8


def excluded(node: Object | None, facts: Node, template: Object | None) -> str:
    """Why the user's template keeps pods off the node for good; empty where it does not.

    `node`: the Node object, None where the cluster has none of this name; `template`: `spec.template`.
    """
    pod = _pod(template)
    if node is None:
        return "" if not pod.get("nodeSelector") else "no Node of this name, so its labels are not known"
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return _unselected(labels, pod.get("nodeSelector") or {}) or _unaffine(
        labels, facts.name, pod.get("affinity") or {}
    )


def closed(node: Object | None, facts: Node, template: Object | None) -> str:
    """Why the node takes no new pods of this template at the moment; empty where it does."""
    if node is None:
        return ""
    spec: Object = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "cordoned"
    return tainted(spec.get("taints") or (), facts, template) or _unlabelled(
        node["metadata"].get("labels") or {}, facts
    )


def tainted(taints: Sequence[Object], facts: Node, template: Object | None) -> str:
    """Why taints keep pods of this template off a node; empty where they do not."""
    tolerations = _tolerations(facts, _pod(template))
    for taint in taints:
        if taint.get("effect") in _EXCLUDING and not any(_tolerates(each, taint) for each in tolerations):
            return f"taint {taint.get('key')}:{taint.get('effect')} is not tolerated by spec.template.spec.tolerations"
    return ""


class IneligibleNode(NamedTuple):
    """A node on which a service's pods do not start, and why."""

    reason: str
    instead: NodeOffer | None
    """The offer of a closed node; None for a node that is no part of the service's cluster."""


def verdicts(
    nodes: Iterable[Node],
    node_named: Callable[[str], Object | None],
    template: Object,
    stale_profiles: Mapping[str, str] = MappingProxyType({}),
) -> Mapping[str, IneligibleNode]:
    """The nodes on which pods of this template do not start, by name. `stale_profiles`: why, by node."""
    found: dict[str, IneligibleNode] = {}
    for facts in nodes:
        node = node_named(facts.name)
        if other := excluded(node, facts, template):
            found[facts.name] = IneligibleNode(other, None)
        elif reason := closed(node, facts, template) or stale_profiles.get(facts.name, ""):
            found[facts.name] = IneligibleNode(reason, NodeOffer(facts, (), closed=reason))
    return found


def reachable(
    offers: Sequence[NodeOffer], judged: Mapping[str, IneligibleNode]
) -> tuple[tuple[NodeOffer, ...], tuple[LeftOut, ...]]:
    """The offers of the nodes that the service's pods may run on, and the other and closed nodes."""
    if not judged:
        return tuple(offers), ()
    kept: list[NodeOffer] = []
    reasons: list[tuple[str, str]] = []
    for offer in offers:
        verdict = judged.get(offer.node.name)
        if verdict is None:
            kept.append(offer)
            continue
        reasons.append((offer.node.name, verdict.reason))
        if verdict.instead is not None:
            kept.append(verdict.instead)
    return tuple(kept), summarised(reasons)


def selectable(offers: Sequence[NodeOffer], judged: Mapping[str, IneligibleNode]) -> tuple[NodeOffer, ...]:
    """The offers of the nodes that the user's template does not exclude, closed ones included."""
    others = {name for name, verdict in judged.items() if verdict.instead is None}
    return tuple(offer for offer in offers if offer.node.name not in others)


def summarised(reasons: Iterable[tuple[str, str]]) -> tuple[LeftOut, ...]:
    """(node, reason) pairs as a few entries: nodes with the same reason share one."""
    nodes: dict[str, list[str]] = {}
    for name, reason in reasons:
        nodes.setdefault(reason, []).append(name)
    return tuple(
        LeftOut(and_more(names, _NAMED, "node"), reason) for reason, names in list(nodes.items())[:MOST_SENTENCES]
    )


def _pod(template: Object | None) -> Object:
    pod: Object = (template or {}).get("spec") or {}
    return pod


def _unlabelled(labels: Mapping[str, str], facts: Node) -> str:
    """Why the pods' own node affinity does not match the node yet; empty where its labels describe its GPUs."""
    for resource in sorted({device.resource_name for device in facts.devices}):
        own = OwnLabelKeys.of(resource)
        alike = len({(device.product, device.memory_bytes) for device in facts.devices}) == 1
        discovered = LabelKeys.of_gfd(resource).count in labels and alike and not facts.simulated
        if own.count not in labels and not discovered:
            return f"it has no label {own.count} yet, which its profiler writes"
    return ""


def _unselected(labels: Mapping[str, str], selector: Mapping[str, str]) -> str:
    missing = [f"{key}={value}" for key, value in selector.items() if labels.get(key) != value]
    return f"spec.template.spec.nodeSelector wants {', '.join(missing)}" if missing else ""


def _unaffine(labels: Mapping[str, str], name: str, affinity: Object) -> str:
    required = (affinity.get("nodeAffinity") or {}).get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: Sequence[Object] = required.get("nodeSelectorTerms") or ()
    if not terms or any(_matches(term, labels, name) for term in terms):
        return ""
    return "no term of spec.template.spec.affinity.nodeAffinity matches it"


def _matches(term: Object, labels: Mapping[str, str], name: str) -> bool:
    wanted = [(each, labels) for each in term.get("matchExpressions") or ()]
    wanted += [(each, {"metadata.name": name}) for each in term.get("matchFields") or ()]
    return bool(wanted) and all(_holds(each, values) for each, values in wanted)


def _holds(requirement: Object, values: Mapping[str, str]) -> bool:
    own, operator = values.get(str(requirement.get("key"))), str(requirement.get("operator"))
    given: list[str] = list(requirement.get("values") or ())
    if operator in ("Exists", "DoesNotExist"):
        return (own is not None) == (operator == "Exists")
    if operator in ("Gt", "Lt"):
        return _compares(own, given, greater=operator == "Gt")
    return (own in given) == (operator == "In")


def _compares(own: str | None, given: Sequence[str], *, greater: bool) -> bool:
    try:
        one, other = int(own or ""), int(given[0])
    except (ValueError, TypeError, IndexError):
        return False
    return one > other if greater else one < other


def _tolerations(facts: Node, pod: Object) -> list[Object]:
    """The user's tolerations, and those of every engine pod."""
    resources = {GPU_RESOURCE, *(device.resource_name for device in facts.devices)}
    ours = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in sorted(resources)]
    return [*ours, *(pod.get("tolerations") or ())]


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    key = toleration.get("key") or ""
    if toleration.get("operator") == "Exists":
        return key in ("", taint.get("key"))
    return bool(key == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or ""))
