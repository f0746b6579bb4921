"""Which request goes which way, and which of its headers go along."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from urllib.parse import unquote_to_bytes
from uuid import uuid4

from multidict import CIMultiDict, CIMultiDictProxy

from uellm.sidecar.outcome import Outcome, Refusal

SCHEDULED = frozenset(
    ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages"),
)
"""Routes whose POST is work for the GPU that a class's targets speak of."""

ADMINISTRATIVE = frozenset(
    (
        # Sleep, pause, elastic scaling, shutdown: they end or alter the service for everybody.
        *("/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/abort_requests", "/shutdown"),
        *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/release_kv_cache_memory"),
        # Arbitrary methods on the workers; profiles written to disk; the environment, tokens included, read out.
        *("/collective_rpc", "/start_profile", "/stop_profile", "/server_info"),
        # Weights and adapters: whoever may change them decides what the model says.
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter"),
        *("/update_weights", "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine"),
        *("/start_weight_update", "/start_draft_weight_update", "/finish_weight_update", "/update_weight_version"),
        *("/weight_checker", "/weight_info", "/get_world_size"),
        # Caches: emptying one is a cheap way to slow everybody down.
        *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
    )
)
"""vLLM's routes for its operator rather than for its users. `/fault_tolerance/...` belongs to them too."""

MAX_HEADER_BYTES = 16 * 1024

_HOP_BY_HOP = frozenset(
    (
        *("connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization"),
        *("te", "trailer", "transfer-encoding", "upgrade", "expect"),
    )
)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/-]{1,128}")


class Way(Enum):
    """What becomes of a request."""

    SCHEDULE = "schedule"
    PASS = "pass"
    METRICS = "metrics"


def way_of(method: str, raw_path: str) -> tuple[Way, str]:
    """The way of a request, and its path as the engine's router reads it. Raises Refusal.

    The engine decodes a path once before it matches, so the decoded one is compared here too: `/%73leep` is `/sleep`.
    """
    if method in ("CONNECT", "TRACE"):
        raise Refusal(Outcome.BAD_REQUEST, f"method {method} is not served here", status=405)
    path = unquote_to_bytes(raw_path).decode("utf-8", "replace")
    segments = [segment for segment in path.split("/") if segment]
    if not path.startswith("/") or "." in segments or ".." in segments or not path.isprintable():
        raise Refusal(
            Outcome.BAD_REQUEST, "the path cannot be used: send it without dot segments or control characters"
        )
    path = "/" + "/".join(segments)
    if path in ADMINISTRATIVE or segments[:1] == ["fault_tolerance"]:
        raise Refusal(Outcome.FORBIDDEN, f"{path} is an administrative route of the engine; it is not served here")
    if method == "POST" and path in SCHEDULED:
        return Way.SCHEDULE, path
    return (Way.METRICS if method == "GET" and path == "/metrics" else Way.PASS), path


def check_headers(raw_headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """Refuse headers that are too many bytes, that could not be passed on unchanged, or that ask for a WebSocket."""
    size_bytes = 0
    for name, value in raw_headers:
        size_bytes += len(name) + len(value) + 4
        if not value.isascii():
            _check_utf8(name, value)
        if name.lower() == b"upgrade" and value.lower().startswith(b"websocket"):
            message = "WebSocket is not served here: use the streaming HTTP routes"
            raise Refusal(Outcome.BAD_REQUEST, message, status=501)
    if size_bytes > MAX_HEADER_BYTES:
        message = f"the headers are {size_bytes} bytes; at most {MAX_HEADER_BYTES} are taken"
        raise Refusal(Outcome.TOO_LARGE, message, status=431)


def _check_utf8(name: bytes, value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError:
        shown = name.decode("ascii", "replace")
        raise Refusal(Outcome.BAD_REQUEST, f"header {shown} is neither ASCII nor UTF-8") from None


def end_to_end(headers: CIMultiDictProxy[str]) -> CIMultiDict[str]:
    """The headers that belong to the message, not to this hop (RFC 9110, 7.6.1)."""
    named = {name.strip().lower() for value in headers.getall("Connection", ()) for name in value.split(",")}
    dropped = _HOP_BY_HOP | named
    return CIMultiDict((name, value) for name, value in headers.items() if name.lower() not in dropped)


def request_id(headers: Mapping[str, str]) -> str:
    """The client's X-Request-Id where it can be used in logs and headers, else a new one."""
    given = headers.get("X-Request-Id", "")
    return given if _REQUEST_ID.fullmatch(given) else uuid4().hex
