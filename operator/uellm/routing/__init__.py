"""Which replica of a service gets a request. Pure and synchronous; the caller passes the clock in.

The same code runs in the gateway and, under a virtual clock, in `uellm evaluate fleet`.
"""

from uellm.routing.request import RoutedRequest
from uellm.routing.router import AUTO, ROUTES, Router

__all__ = ["AUTO", "ROUTES", "RoutedRequest", "Router"]
