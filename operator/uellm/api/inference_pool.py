"""`spec.inferencePool`: the pool's endpoint picker, and the Gateways that lead to it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from uellm.api.base import ATOMIC, Model, ValidationRule
from uellm.api.scalars import DnsLabel, DnsSubdomain

DEFAULT_PICKER_PORT = 9002
_HOSTNAME = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


class EndpointPicker(Model):
    """The Service of the endpoint picker, in the LLMService's own namespace."""

    name: DnsLabel | None = None
    """Its name; that of the LLMService with `-epp` where not set."""
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PICKER_PORT
    """Its port for ext-proc."""
    failure_mode: Literal["FailOpen", "FailClose"] = "FailOpen"
    """What a Gateway does while the endpoint picker does not answer. FailOpen: it picks a pod by itself; FailClose: it
    refuses the request."""


class ParentGateway(Model):
    """A Gateway of the Gateway API, or one of its listeners."""

    name: DnsSubdomain
    """Its name."""
    namespace: DnsLabel | None = None
    """Its namespace; that of the LLMService where not set. The Gateway's listeners must allow routes from there."""
    section_name: DnsSubdomain | None = None
    """The listener; all of them where not set."""


class InferencePoolSpec(Model):
    """The InferencePool of a service, and its HTTPRoute."""

    rules = (
        ValidationRule(
            cel="!has(self.hostnames) || self.hostnames.size() == 0 || "
            "(has(self.gateways) && self.gateways.size() > 0)",
            holds=lambda pool: not pool.hostnames or bool(pool.gateways),
            message="must not be set without gateways: without one no HTTPRoute is made",
            field=".hostnames",
        ),
    )

    endpoint_picker: EndpointPicker = Field(default_factory=EndpointPicker)
    """Which endpoint picker chooses the pod for each request. The operator does not deploy it."""
    gateways: Annotated[tuple[ParentGateway, ...], Field(max_length=8, json_schema_extra=dict(ATOMIC))] = ()
    """Gateways that an HTTPRoute attaches the pool to; no HTTPRoute is made where not set."""
    hostnames: Annotated[
        tuple[Annotated[str, StringConstraints(pattern=_HOSTNAME, max_length=253)], ...],
        Field(max_length=16, json_schema_extra=dict(ATOMIC)),
    ] = ()
    """Hostnames of the HTTPRoute; every one that the Gateways listen to where not set."""
