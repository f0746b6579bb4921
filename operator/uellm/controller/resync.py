"""Full lists, now and then: they find what a watch missed."""

from __future__ import annotations

import asyncio
import logging
import random

from uellm.api.names import SERVICE_LABEL
from uellm.errors import CannotBeDone
from uellm.kube import Forbidden, Kube, KubeError, NotFound
from uellm.kube.kinds import (
    DEVICECLASS,
    GPUNODECLASS,
    GPUNODEPROFILE,
    LLMSERVICE,
    NODE,
    RESOURCECLAIM,
    RESOURCESLICE,
    Kind,
)
from uellm.reconcile.cache import DRA_KINDS, Cache
from uellm.reconcile.dra.support import NOT_SERVED, DraSupport

logger = logging.getLogger(__name__)

FIRST_S = 15.0
EVERY_S = 600.0
RETRY_S = 2.0
WHOLE_KINDS = (LLMSERVICE, GPUNODEPROFILE, GPUNODECLASS, NODE, DEVICECLASS, RESOURCESLICE, RESOURCECLAIM)
"""Kinds of which every object matters; of the others, those with the service label."""


def label_selector(kind: Kind) -> str:
    """Selects the objects of a kind that matter."""
    return "" if kind in WHOLE_KINDS else SERVICE_LABEL


async def fill(kube: Kube, cache: Cache) -> None:
    """Replace the cache by full lists. Raises KubeError."""
    for kind in cache.watched_kinds:
        before = cache.snapshot(kind)
        cache.replace(kind, await kube.list(kind, label_selector=label_selector(kind)), before=before)


async def dra_support(kube: Kube) -> DraSupport:
    """Whether the API server has the kinds for claims, and the operator may read them. Raises KubeError."""
    try:
        for kind in DRA_KINDS:
            await kube.list(kind, label_selector=label_selector(kind))
    except NotFound:
        return NOT_SERVED
    except Forbidden as error:
        return DraSupport(served=False, forbidden=str(error))
    return DraSupport(served=True)


async def dra_support_first(kube: Kube) -> DraSupport:
    """The same, repeated until the API server answers."""
    while True:
        try:
            return await dra_support(kube)
        except KubeError as error:
            if not error.transient:
                raise
            logger.warning("waiting for the API server: %s", error)
            await asyncio.sleep(RETRY_S)


async def fill_first(kube: Kube, cache: Cache) -> None:
    """The same, repeated until the API server answers. Raises CannotBeDone where the CRDs are not installed."""
    while True:
        try:
            return await fill(kube, cache)
        except NotFound as error:
            raise CannotBeDone(f"UELLM's CRDs are not installed ({error}): uellm crds | kubectl apply -f -") from error
        except KubeError as error:
            if not error.transient:
                raise
            logger.warning("waiting for the API server: %s", error)
            await asyncio.sleep(RETRY_S)


def next_in_s() -> float:
    """Seconds until the next resync, with jitter so that it does not coincide with other periodic work."""
    return EVERY_S * random.uniform(0.9, 1.1)
