"""The node affinity of an engine's pod: what a node must be, as predicates over labels. It names no node.

    (GPU Feature Discovery's labels suffice)  or  (the profiler's own labels suffice)

Labels alone decide where a node's GPUs are identical. A node with unlike GPUs carries the profiler's mark and is left
to the scheduler extender, which knows every GPU. Any other scheduler takes such a node whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from uellm.api.node_labels import (
    CAPABILITY_MAJOR,
    CAPABILITY_MINOR,
    SHARED,
    SHARING_STRATEGY,
    LabelKeys,
    OwnLabelKeys,
    label_value,
)
from uellm.hardware import NodeNeeds

Requirement = dict[str, Any]


def node_affinity(needs: NodeNeeds, *, extender: bool) -> dict[str, Any]:
    """`spec.affinity.nodeAffinity`. `extender`: the pod's scheduler asks the extender."""
    own = OwnLabelKeys.of(needs.resource_name)
    alike = _alike(needs, own, LabelKeys(own.count, own.memory, own.product))
    unlike = _unlike(needs, own, extender=extender)
    terms = [[*by_own, *capability] for capability in _own_capabilities(needs, own) for by_own in (alike, unlike)]
    if not needs.simulated:
        gfd = _alike(needs, own, LabelKeys.of_gfd(needs.resource_name))
        terms += [[*gfd, *capability] for capability in _gfd_capabilities(needs)]
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchExpressions": term} for term in terms]
        }
    }


def _alike(needs: NodeNeeds, own: OwnLabelKeys, keys: LabelKeys) -> list[Requirement]:
    return [
        _more_than(keys.count, needs.gpus - 1),
        _more_than(keys.memory, needs.memory_mib - 1),
        *_products(needs, keys.product),
        _absent(own.unlike),
        *_kind(needs, own),
    ]


def _unlike(needs: NodeNeeds, own: OwnLabelKeys, *, extender: bool) -> list[Requirement]:
    count = _more_than(own.count, needs.gpus - 1) if extender else _one_of(own.count, [str(needs.gpus)])
    return [
        count,
        _more_than(own.memory, needs.smallest_mib - 1),
        *_products(needs, own.product),
        _one_of(own.unlike, ["true"]),
        *_kind(needs, own),
    ]


def _kind(needs: NodeNeeds, own: OwnLabelKeys) -> list[Requirement]:
    """Real GPUs that nobody shares, or simulated ones."""
    if needs.simulated:
        return [_one_of(own.simulated, ["true"])]
    return [
        _absent(own.simulated),
        {"key": SHARING_STRATEGY, "operator": "NotIn", "values": list(SHARED)},
    ]


def _products(needs: NodeNeeds, key: str) -> list[Requirement]:
    return [_one_of(key, [label_value(product) for product in needs.products])] if needs.products else []


def _own_capabilities(needs: NodeNeeds, own: OwnLabelKeys) -> list[list[Requirement]]:
    """Alternatives: enough and not too much, or unknown, which the planner takes too.

    The label tells the lowest of a node's GPUs. That one has GPUs on both sides of the bound is not known of any.
    """
    if needs.capability is None:
        return [[]]
    major, minor = needs.capability
    known = [_more_than(own.capability, major * 10 + minor - 1)]
    if needs.capability_below is not None:
        known.append(_less_than(own.capability, needs.capability_below[0] * 10 + needs.capability_below[1]))
    return [known, [_absent(own.capability)]]


def _gfd_capabilities(needs: NodeNeeds) -> list[list[Requirement]]:
    """Alternatives: a greater major version, or the same with at least the minor one. GFD always knows it.

    The bound is that of a major version.
    """
    if needs.capability is None:
        return [[]]
    major, minor = needs.capability
    bound = [] if needs.capability_below is None else [_less_than(CAPABILITY_MAJOR, needs.capability_below[0])]
    if minor == 0:
        return [[_more_than(CAPABILITY_MAJOR, major - 1), *bound]]
    same = [_one_of(CAPABILITY_MAJOR, [str(major)]), _more_than(CAPABILITY_MINOR, minor - 1)]
    return [[_more_than(CAPABILITY_MAJOR, major), *bound], same]


def _more_than(key: str, value: int) -> Requirement:
    # The API has no "at least"; a negative bound is not allowed everywhere.
    return {"key": key, "operator": "Gt", "values": [str(max(0, value))]}


def _less_than(key: str, value: int) -> Requirement:
    return {"key": key, "operator": "Lt", "values": [str(value)]}


def _absent(key: str) -> Requirement:
    return {"key": key, "operator": "DoesNotExist"}


def _one_of(key: str, values: Sequence[str]) -> Requirement:
    return {"key": key, "operator": "In", "values": list(values)}
