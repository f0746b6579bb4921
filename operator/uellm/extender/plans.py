"""The plans of pods, read once: a service's pods all have the same, and each is asked about many times."""

from __future__ import annotations

from functools import lru_cache

from uellm.planner.handover.annotation import PlanAnnotation

# Plans that are remembered, with their verdicts; one takes some hundred bytes for each shape of node.
MOST_PLANS = 256


@lru_cache(MOST_PLANS)
def read_plan(text: str) -> PlanAnnotation:
    """The plan of an annotation. Raises UnreadableDocument."""
    return PlanAnnotation.from_json(text)
