"""Why a service cannot be brought to what its spec asks for."""

from __future__ import annotations

from typing import NamedTuple


class Obstacle(NamedTuple):
    """There is no plan, or the API server refuses an object: a CamelCase reason and a sentence for people."""

    reason: str
    message: str
