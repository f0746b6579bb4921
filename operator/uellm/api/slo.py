"""Latency targets by class of request, and the load that a service is sized for."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import MapBy, Model, ValidationRule
from uellm.api.scalars import DnsLabel, Duration, Percent, Rate, duration_s, quantity


class ServiceClass(Model):
    """Requests with the same latency targets. A request names its class; see `defaultClass`."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)]
    """Name of the class."""
    priority: Annotated[int, Field(ge=0, le=1000)] = 0
    """If not all requests can meet their targets, those with a higher priority go first."""
    ttft: Duration | None = None
    """Target: time to the first token."""
    tpot: Duration | None = None
    """Target: mean time for each further token."""
    e2e: Duration | None = None
    """Target: time to the last token."""
    on_deadline: Literal["Serve", "Reject"] = "Serve"
    """What happens to a request whose deadline passes in the queue: it is served late, or rejected."""

    @property
    def ttft_s(self) -> float | None:
        """Time to first token in seconds."""
        return None if self.ttft is None else duration_s(self.ttft)

    @property
    def tpot_s(self) -> float | None:
        """Time per output token in seconds."""
        return None if self.tpot is None else duration_s(self.tpot)

    @property
    def e2e_s(self) -> float | None:
        """End-to-end time in seconds."""
        return None if self.e2e is None else duration_s(self.e2e)

    @property
    def has_target(self) -> bool:
        """Whether at least one latency target is set."""
        return bool(self.ttft or self.tpot or self.e2e)


class Slo(Model):
    """The latency targets of the service."""

    rules = (
        ValidationRule(
            cel="!has(self.defaultClass) || (has(self.classes) && self.classes.exists(c, c.name == self.defaultClass))",
            holds=lambda slo: slo.default_class is None or any(c.name == slo.default_class for c in slo.classes),
            message="must name one of the classes",
            field=".defaultClass",
        ),
        ValidationRule(
            cel="!has(self.classes) || self.classes.all(c, has(c.ttft) || has(c.tpot) || has(c.e2e))",
            holds=lambda slo: all(c.has_target for c in slo.classes),
            message="each class needs at least one target: ttft, tpot or e2e",
            field=".classes",
        ),
        ValidationRule(
            cel="!has(self.classes) || "
            "self.classes.all(c, !has(c.ttft) || !has(c.e2e) || duration(c.ttft) <= duration(c.e2e))",
            holds=lambda slo: all(c.ttft_s <= c.e2e_s for c in slo.classes if c.ttft and c.e2e),
            message="a class's ttft must not be longer than its e2e",
            field=".classes",
        ),
    )

    default_class: DnsLabel | None = None
    """Class of requests that name none; the first where not set."""
    classes: Annotated[tuple[ServiceClass, ...], Field(max_length=16), MapBy("name")] = ()
    """Classes of requests. If empty, there is one class `default` without targets, which is sized by `objective`."""
    attainment: Percent = "99%"
    """Share of requests that should meet every target of their class; `SLOMet` compares with it."""
    objective: Literal["Efficiency", "Latency", "Throughput"] = "Efficiency"
    """What to optimise where the targets leave a choice: fewest GPUs, shortest times, most tokens."""

    @property
    def effective_classes(self) -> tuple[ServiceClass, ...]:
        """The classes, or one class `default` without targets if there are none."""
        return self.classes or (ServiceClass(name="default"),)

    @property
    def effective_default_class(self) -> str:
        """The class of requests that name none."""
        return self.default_class or self.effective_classes[0].name


class Tokens(Model):
    """Length of prompts or answers, in tokens."""

    mean: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Mean length."""
    p95: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Length that 95 of 100 requests do not exceed."""


class WorkloadSpec(Model):
    """The load for which the whole service is sized. What is not given is assumed, and the plan lists the
    assumptions.
    """

    requests_per_second: Rate | None = None
    """Rate of arriving requests, as a quantity: "4", "500m"."""
    prompt_tokens: Tokens | None = None
    """Length of the prompts."""
    output_tokens: Tokens | None = None
    """Length of the answers."""

    @property
    def requests_per_s(self) -> float | None:
        """Arriving requests per second."""
        return None if self.requests_per_second is None else float(quantity(self.requests_per_second))
