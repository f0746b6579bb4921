"""Kinds of other projects, of which services have children where they are installed."""

from __future__ import annotations

from enum import Enum

from uellm.kube.kinds import HTTPROUTE, INFERENCEPOOL

OPTIONAL_KINDS = (INFERENCEPOOL, HTTPROUTE)


class Availability(Enum):
    """Whether objects of a kind can be read."""

    SERVED = "served"
    NOT_INSTALLED = "not installed"
    FORBIDDEN = "forbidden"
