"""Before a Deployment gets fewer replicas: reads the load of its pods anew, and marks those that are to end."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from uellm.kube.kinds import DEPLOYMENT, kind_of
from uellm.reconcile.apply import Applier
from uellm.reconcile.observe import Observed
from uellm.reconcile.pods.measurements import Measurements
from uellm.reconcile.pods.sidecar_client import MOST_OPEN
from uellm.reconcile.scaling.deletion_costs import cost_marks, serving

FRESH_S = 2.0
"""A load that was read so lately is not read again."""
PATIENCE_S = 3.0
"""For each of reading and marking: a smaller number of replicas does not wait for a choice."""


async def mark_least_busy(
    observed: Observed, manifests: Iterable[Mapping[str, Any]], measurements: Measurements, applier: Applier
) -> None:
    """Call it before the manifests are written. Where they lower no number, or to none, it does nothing.

    A LeaderWorkerSet ends the groups with the highest numbers, whatever their pods cost.
    """
    replicas = _lowered_to(observed, manifests)
    if replicas is None or len(candidates := serving(observed.pods)) <= replicas:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(math.ceil(len(candidates) / MOST_OPEN)):
                await measurements.refresh(candidates, FRESH_S)
    loads = {uid: each.load for uid, each in measurements.loads_of(candidates).items()}
    marks = cost_marks(candidates, loads, replicas, observed.leaving_nodes)
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            await applier.mark_costs(observed, marks)


def _lowered_to(observed: Observed, manifests: Iterable[Mapping[str, Any]]) -> int | None:
    """The number of replicas, where it is to be smaller than it is, and not 0."""
    live = observed.children.get(DEPLOYMENT)
    wanted = next((int(each["spec"]["replicas"]) for each in manifests if kind_of(each) == DEPLOYMENT), None)
    if live is None or wanted is None or not 0 < wanted < int(live["spec"].get("replicas", 1)):
        return None
    return wanted
