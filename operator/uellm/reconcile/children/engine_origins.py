"""Which web pages the engine allows: the sidecar obeys the same for its own answers. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def engine_origins(args: Sequence[str]) -> dict[str, Any]:
    """`allowedOrigins` and `allowCredentials` of `sidecar.yaml`, from `spec.engine.args`; empty where none is allowed.

    A value that vLLM would refuse allows none.

    >>> engine_origins(["--allowed-origins", '["https://chat.example.com"]'])
    {'allowedOrigins': ['https://chat.example.com']}
    """
    origins, credentials = "", False
    for index, argument in enumerate(args):
        flag, equals, value = argument.partition("=")
        flag = flag.replace("_", "-")
        if flag == "--allowed-origins":
            origins = value if equals else next(iter(args[index + 1 : index + 2]), "")
        elif flag in ("--allow-credentials", "--no-allow-credentials"):
            credentials = flag == "--allow-credentials"
    try:
        listed = json.loads(origins)
    except ValueError:
        return {}
    if not isinstance(listed, list) or not listed or not all(isinstance(origin, str) for origin in listed):
        return {}
    return {"allowedOrigins": listed} | ({"allowCredentials": True} if credentials else {})
