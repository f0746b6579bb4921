"""What clients of a service may send, and how long their connections stay open."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from uellm.api.base import MapBy, Model
from uellm.api.scalars import Duration, duration_s

MAX_BODY_BYTES = 256 * 1024 * 1024
BodyBytes = Annotated[int, Field(ge=1, le=MAX_BODY_BYTES)]
RoutePath = Annotated[str, StringConstraints(pattern=r"^/[!-~]*$", max_length=256)]


class HttpRoute(Model):
    """What is different for one route."""

    path: RoutePath
    """The route, such as `/v1/audio/transcriptions`."""
    max_body_bytes: BodyBytes
    """Bytes of one request's body."""


class HttpSpec(Model):
    """What clients may send, and how long connections stay open."""

    idle_timeout: Duration = "70m"
    """How long a connection may be unused. Load balancers keep theirs for up to 4000 s, and should close first."""
    max_body_bytes: BodyBytes = MAX_BODY_BYTES
    """Bytes of one request's body. All bodies together have 256 MiB."""
    routes: Annotated[tuple[HttpRoute, ...], Field(max_length=64), MapBy("path")] = ()
    """Other limits for single routes. Routes for audio have 26 MiB without it: vLLM takes files of 25 MiB."""

    @property
    def idle_timeout_s(self) -> float:
        """Seconds that a connection may be unused."""
        return duration_s(self.idle_timeout)
