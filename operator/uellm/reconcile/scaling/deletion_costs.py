"""Which replicas end where a Deployment gets fewer of them: the least busy ones. Pure.

Kubernetes chooses: of a ReplicaSet's pods first those that are not ready, then those of the lowest deletion cost, which
is 0 where none is set. So only pods that are to go are marked. A cost that somebody else has set is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from uellm.api.attainment_report import LoadMeasurement
from uellm.reconcile.names import COST_ANNOTATION, OWN_COST_ANNOTATION, uid_of
from uellm.reconcile.pods.engine_readiness import living
from uellm.reconcile.pods.pod_state import is_ready

Pod = Mapping[str, Any]

_REPLICASET_LABEL = "pod-template-hash"


class CostMark(NamedTuple):
    """A pod, and what its annotations are to be; None: not there."""

    pod: str
    uid: str
    annotations: Mapping[str, str | None]


class _Burden(NamedTuple):
    """What the end of a pod costs: the lower, the sooner it goes."""

    chosen: int
    """The cost that somebody else has set."""
    stays: bool
    """False: its node is being emptied."""
    unknown: bool
    """It does not tell its load, so it may be the busiest."""
    requests: int
    """That it has, waiting ones included."""
    cached_share: float
    """Of its prompts: what others would compute again."""


def serving(pods: Iterable[Pod]) -> list[Pod]:
    """Those among which a choice is to be made: the others end first."""
    return [pod for pod in living(pods) if is_ready(pod)]


def cost_marks(
    pods: Iterable[Pod], loads: Mapping[str, LoadMeasurement], replicas: int, leaving: frozenset[str]
) -> list[CostMark]:
    """The annotations to write before there are only so many replicas.

    `loads`: by pod uid; `leaving`: nodes that are being emptied. During a rollout several ReplicaSets have pods, and it
    is not known how many each gives up: then the marks tell the order.
    """
    candidates = serving(pods)
    surplus = len(candidates) - replicas
    if replicas <= 0 or surplus <= 0:
        return []
    by_replicaset = defaultdict(list)
    for pod in candidates:
        by_replicaset[(pod["metadata"].get("labels") or {}).get(_REPLICASET_LABEL)].append(pod)
    found = []
    for group in by_replicaset.values():
        costs = _costs(group, {uid_of(pod): _burden(pod, loads, leaving) for pod in group}, surplus)
        found += [mark for pod in group if (mark := _mark(pod, costs.get(uid_of(pod)))) is not None]
    return found


def _costs(group: Sequence[Pod], burdens: Mapping[str, _Burden], surplus: int) -> dict[str, int]:
    """The costs of those that are to go, by uid. Where all are alike, the choice is left to Kubernetes."""
    if len(set(burdens.values())) == 1:
        return {}
    newest_first = sorted(group, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)
    first = sorted(newest_first, key=lambda pod: burdens[uid_of(pod)])[: min(surplus, len(group) - 1)]
    return {uid_of(pod): place - len(first) for place, pod in enumerate(first)}


def _burden(pod: Pod, loads: Mapping[str, LoadMeasurement], leaving: frozenset[str]) -> _Burden:
    load = loads.get(uid_of(pod))
    stays = pod["spec"].get("nodeName") not in leaving
    if load is None:
        return _Burden(_chosen(pod) or 0, stays, True, 0, 0.0)
    return _Burden(_chosen(pod) or 0, stays, False, load.running + load.queued + load.passing, load.cached_share)


def _mark(pod: Pod, cost: int | None) -> CostMark | None:
    """What is to be written; None where the pod is marked as it should be, or by somebody else."""
    annotations, wanted = pod["metadata"].get("annotations") or {}, None if cost is None else str(cost)
    if _chosen(pod) is not None or annotations.get(COST_ANNOTATION) == wanted:
        return None
    marks = {COST_ANNOTATION: wanted, OWN_COST_ANNOTATION: wanted}
    return CostMark(pod["metadata"]["name"], uid_of(pod), marks)


def _chosen(pod: Pod) -> int | None:
    """The cost that somebody else has set; None for none."""
    annotations = pod["metadata"].get("annotations") or {}
    text = annotations.get(COST_ANNOTATION)
    if text is None or text == annotations.get(OWN_COST_ANNOTATION):
        return None
    try:
        return int(text)
    except ValueError:
        return 0  # as Kubernetes takes it
