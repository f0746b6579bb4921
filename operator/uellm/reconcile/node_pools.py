"""Karpenter's NodePools: which labels the nodes of each would carry. Read only while a service waits for a node."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from uellm.api.names import GROUP
from uellm.kube import KubeError, NotFound

logger = logging.getLogger(__name__)

FRESH_S = 30.0
"""How long an answer is good for."""
_WELL_KNOWN = ("kubernetes.io", "karpenter.sh", "karpenter.k8s.aws", "karpenter.azure.com", "karpenter.k8s.gcp")
_CARRIED = ("In", "Exists", "Gt", "Lt")
"""Operators that only a node with the label meets."""

ListPools = Callable[[], Awaitable[Sequence[Mapping[str, Any]]]]


class NodePools:
    """The last answer of the API server. A cluster without Karpenter has no pools."""

    def __init__(self, list_pools: ListPools, clock: Callable[[], float]) -> None:
        self._list = list_pools
        self._clock = clock
        self._asked_s: float | None = None
        self._labels: tuple[frozenset[str], ...] = ()

    async def labels(self) -> tuple[frozenset[str], ...]:
        """The labels of each pool; nothing where they cannot be read."""
        if self._asked_s is None or self._clock() - self._asked_s >= FRESH_S:
            self._asked_s = self._clock()
            self._labels = await self._read()
        return self._labels

    async def _read(self) -> tuple[frozenset[str], ...]:
        try:
            return tuple(map(pool_labels, await self._list()))
        except NotFound:
            return ()  # there is no Karpenter
        except KubeError as error:
            logger.info("NodePools cannot be read: %s", error)
            return ()


def pool_labels(pool: Mapping[str, Any]) -> frozenset[str]:
    """Keys of the labels that a pool's nodes carry, besides the well-known ones."""
    template = (pool.get("spec") or {}).get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    requirements = (template.get("spec") or {}).get("requirements") or ()
    return frozenset((*labels, *(each["key"] for each in requirements)))


def missing_labels(pools: Sequence[frozenset[str]], pod: Mapping[str, Any]) -> tuple[str, ...]:
    """Labels that a pod asks for and that the pool which comes nearest lacks; empty where one pool has all.

    `pod`: the pod's spec. The alternative that takes the fewest labels counts, GPU Feature Discovery's first.
    """
    lacking = [wanted - pool for pool in pools for wanted in _alternatives(pod)]
    own = f"{GROUP}/"
    best = min(
        lacking, key=lambda keys: (len(keys), any(key.startswith(own) for key in keys), sorted(keys)), default=None
    )
    return tuple(sorted(best or ()))


def _alternatives(pod: Mapping[str, Any]) -> Iterator[frozenset[str]]:
    """The labels that each alternative of the pod's node affinity asks for, with those of its selector."""
    selector = list(pod.get("nodeSelector") or {})
    affinity = ((pod.get("affinity") or {}).get("nodeAffinity")) or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    terms: Sequence[Mapping[str, Any]] = required.get("nodeSelectorTerms") or ({},)
    for term in terms:
        expressions = term.get("matchExpressions") or ()
        if any(_is_unknown_capability(each) for each in expressions):
            continue  # no pool promises that its GPUs' compute capability is unknown
        keys = (*selector, *(each["key"] for each in expressions if each.get("operator") in _CARRIED))
        yield frozenset(key for key in keys if not key.partition("/")[0].endswith(_WELL_KNOWN))


def _is_unknown_capability(expression: Mapping[str, Any]) -> bool:
    return bool(expression.get("operator") == "DoesNotExist" and expression["key"].endswith(".capability"))
