"""Which nodes the pods of a service may run on, by the user's pod template and the node's taints. Pure.

A plan for a node that the scheduler refuses would leave its pods Pending for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from uellm.api import LLMService
from uellm.hardware import GPU_RESOURCE, Node
from uellm.planner.request import NodeOffer
from uellm.text import and_more

Object = Mapping[str, Any]
_EXCLUDING = ("NoSchedule", "NoExecute")
_NAMED = 3
MOST_SENTENCES = 8


def ineligible(node: Object | None, facts: Node, template: Object | None) -> str:
    """Why pods of this template cannot run on the node; empty where they can.

    `node`: the Node object, None where the cluster has none of this name; `template`: `spec.template`.
    """
    pod: Object = (template or {}).get("spec") or {}
    if node is None:
        return "" if not pod.get("nodeSelector") else "no Node of this name, so its labels are not known"
    spec: Object = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "cordoned"
    labels: Mapping[str, str] = node["metadata"].get("labels") or {}
    return (
        _unselected(labels, pod.get("nodeSelector") or {})
        or _unaffine(labels, facts.name, pod.get("affinity") or {})
        or _tainted(spec.get("taints") or (), _tolerations(facts, pod))
    )


def reachable(
    offers: Sequence[NodeOffer], node_named: Callable[[str], Object | None], service: LLMService
) -> tuple[tuple[NodeOffer, ...], tuple[str, ...]]:
    """The offers of the nodes that the service's pods may run on, and sentences about the other nodes."""
    template = service.spec.template.to_dict()
    reasons = {offer.node.name: ineligible(node_named(offer.node.name), offer.node, template) for offer in offers}
    kept = tuple(offer for offer in offers if not reasons[offer.node.name])
    return kept, summarised((name, reason) for name, reason in reasons.items() if reason)


def summarised(reasons: Iterable[tuple[str, str]]) -> tuple[str, ...]:
    """(node, reason) pairs as a few sentences: nodes with the same reason share one."""
    nodes: dict[str, list[str]] = {}
    for name, reason in reasons:
        nodes.setdefault(reason, []).append(name)
    return tuple(
        f"{and_more(names, _NAMED, 'node')}: {reason}" for reason, names in list(nodes.items())[:MOST_SENTENCES]
    )


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
    except (ValueError, IndexError):
        return False
    return one > other if greater else one < other


def _tolerations(facts: Node, pod: Object) -> list[Object]:
    """The user's tolerations, and those of every engine pod."""
    resources = {GPU_RESOURCE, *(device.resource_name for device in facts.devices)}
    ours = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in sorted(resources)]
    return [*ours, *(pod.get("tolerations") or ())]


def _tainted(taints: Sequence[Object], tolerations: Sequence[Object]) -> str:
    for taint in taints:
        if taint.get("effect") in _EXCLUDING and not any(_tolerates(each, taint) for each in tolerations):
            return f"taint {taint.get('key')}:{taint.get('effect')} is not tolerated by spec.template.spec.tolerations"
    return ""


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    key = toleration.get("key") or ""
    if toleration.get("operator") == "Exists":
        return key in ("", taint.get("key"))
    return bool(key == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or ""))
