"""Full lists, now and then: they find what a watch missed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable

from uellm.api.names import SERVICE_LABEL
from uellm.controller.rights import lacking
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
from uellm.reconcile.cache import WATCHED_KINDS, Cache
from uellm.reconcile.names import Key
from uellm.reconcile.optional_kinds import OPTIONAL_KINDS, Availability

logger = logging.getLogger(__name__)

FIRST_S = 15.0
EVERY_S = 600.0
RETRY_S = 2.0
WHOLE_KINDS = (LLMSERVICE, GPUNODEPROFILE, GPUNODECLASS, NODE, DEVICECLASS, RESOURCESLICE, RESOURCECLAIM)
"""Kinds of which every object matters; of the others, those with the service label."""

ALL_KINDS = (*WATCHED_KINDS, *OPTIONAL_KINDS)
FIRST_KINDS = (*(kind for kind in WATCHED_KINDS if kind in WHOLE_KINDS), *OPTIONAL_KINDS)
"""Of the other kinds, the watches bring lists of their own."""


def label_selector(kind: Kind) -> str:
    """Selects the objects of a kind that matter."""
    return "" if kind in WHOLE_KINDS else SERVICE_LABEL


async def fill(kube: Kube, cache: Cache, kinds: Iterable[Kind] = ALL_KINDS) -> None:
    """Replace these kinds in the cache by full lists. Raises KubeError, and CannotBeDone where a right is missing."""
    for kind in kinds:
        if kind in OPTIONAL_KINDS:
            await fill_optional(kube, cache, kind)
            continue
        before = cache.snapshot(kind)
        try:
            found = await kube.list(kind, label_selector=label_selector(kind))
        except Forbidden as error:
            raise lacking(kind, error) from error
        cache.replace(kind, found, before=before)


async def fill_optional(kube: Kube, cache: Cache, kind: Kind) -> None:
    """The same for a kind that may not be installed. Raises KubeError."""
    before = cache.snapshot(kind)
    try:
        found = await kube.list(kind, label_selector=label_selector(kind))
    except (NotFound, Forbidden) as error:
        if cache.available[kind] is Availability.SERVED:
            return  # its watch is told so, too, unless one answer was wrong
        cache.available[kind] = Availability.FORBIDDEN if isinstance(error, Forbidden) else Availability.NOT_INSTALLED
        found = []
    else:
        cache.available[kind] = Availability.SERVED
    cache.replace(kind, found, before=before)


async def fill_patiently(kube: Kube, cache: Cache, kinds: Iterable[Kind] = ALL_KINDS) -> None:
    """The same, repeated until the API server answers. Raises CannotBeDone where CRDs or rights are missing."""
    while True:
        try:
            return await fill(kube, cache, kinds)
        except NotFound as error:
            raise CannotBeDone(f"UELLM's CRDs are not installed ({error}): uellm crds | kubectl apply -f -") from error
        except KubeError as error:
            if not error.transient:
                raise
            logger.warning("waiting for the API server: %s", error)
            await asyncio.sleep(RETRY_S)


async def changed_services(kube: Kube, cache: Cache) -> list[Key]:
    """List the services again. Returns those that are new, changed or gone."""
    before = cache.snapshot(LLMSERVICE)
    await fill_patiently(kube, cache, (LLMSERVICE,))
    after = cache.snapshot(LLMSERVICE)
    return [Key(*place) for place in {**before, **after} if after.get(place) is not before.get(place)]


def next_in_s() -> float:
    """Seconds until the next resync, with jitter so that it does not coincide with other periodic work."""
    return EVERY_S * random.uniform(0.9, 1.1)
