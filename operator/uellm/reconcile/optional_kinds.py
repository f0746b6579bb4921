"""Kinds that a cluster may not have: those of other projects, and those of later versions of Kubernetes."""

from __future__ import annotations

from enum import Enum

from uellm.kube.kinds import (
    DEVICECLASS,
    HTTPROUTE,
    INFERENCEPOOL,
    LEADERWORKERSET,
    RESOURCECLAIM,
    RESOURCECLAIMTEMPLATE,
    RESOURCESLICE,
)

ROUTING_KINDS = (INFERENCEPOOL, HTTPROUTE)
"""Of other projects. Services have them as children."""
GROUP_KINDS = (LEADERWORKERSET,)
"""Of another project. Services whose replicas span nodes have it as a child."""
DRA_KINDS = (DEVICECLASS, RESOURCESLICE, RESOURCECLAIM, RESOURCECLAIMTEMPLATE)
"""By which pods claim GPUs, from Kubernetes 1.34 on."""
OPTIONAL_KINDS = (*ROUTING_KINDS, *GROUP_KINDS, *DRA_KINDS)


class Availability(Enum):
    """Whether objects of a kind can be read."""

    SERVED = "served"
    NOT_INSTALLED = "not installed"
    FORBIDDEN = "forbidden"
