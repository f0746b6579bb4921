"""metav1.Condition, used in every status."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import MapBy, StatusModel
from uellm.api.scalars import Timestamp


class ConditionStatus(StatusModel):
    """One aspect of the resource's state: whether it holds, since when, and why."""

    type: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z]*$", max_length=63)]
    """Name of the aspect in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=63)]
    """The cause in one CamelCase word, for programs."""
    message: Annotated[str, StringConstraints(max_length=4096)]
    """The cause in a sentence, with what to change, for people."""
    last_transition_time: Timestamp
    """When `status` last changed."""
    observed_generation: Annotated[int | None, Field(ge=0)] = None
    """The generation of the spec that the condition refers to."""


Conditions = Annotated[tuple[ConditionStatus, ...], Field(max_length=16), MapBy("type")]
