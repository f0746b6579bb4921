"""vLLM's routes (entrypoints of 0.32.0): GPU work is scheduled, administration is refused, the rest passes."""

from __future__ import annotations

from enum import Enum


class RouteKind(Enum):
    """How body and answer of a scheduled route are parsed."""

    CHAT = "chat"
    CONVERSATIONS = "conversations"
    """Many chats in one body, which has one answer."""
    TOKEN_IDS = "token-ids"
    """A prompt of token ids, with vLLM's own sampling parameters."""
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    POOLING = "pooling"
    """One pass over the prompt and no tokens out: embeddings, scores, classes."""
    OTHER = "other"
    """GPU work whose body is not parsed, such as audio."""

    __hash__ = object.__hash__  # an enum's own is a call of Python code for each look-up


SCHEDULED = {
    "/v1/chat/completions": RouteKind.CHAT,
    "/v1/completions": RouteKind.COMPLETIONS,
    "/v1/responses": RouteKind.RESPONSES,
    "/v1/messages": RouteKind.MESSAGES,
    "/v1/embeddings": RouteKind.POOLING,
    "/v2/embed": RouteKind.POOLING,
    "/pooling": RouteKind.POOLING,
    "/classify": RouteKind.POOLING,
    "/score": RouteKind.POOLING,
    "/v1/score": RouteKind.POOLING,
    "/rerank": RouteKind.POOLING,
    "/v1/rerank": RouteKind.POOLING,
    "/v2/rerank": RouteKind.POOLING,
    "/generative_scoring": RouteKind.POOLING,
    "/v1/systemone": RouteKind.OTHER,
    "/v1/chat/completions/batch": RouteKind.CONVERSATIONS,
    "/inference/v1/generate": RouteKind.TOKEN_IDS,
    "/cohere/v2/chat": RouteKind.OTHER,
    "/invocations": RouteKind.OTHER,
    "/v1/audio/transcriptions": RouteKind.OTHER,
    "/v1/audio/translations": RouteKind.OTHER,
}
"""Routes whose POST is GPU work that the targets of a class apply to."""

TRANSCRIPTIONS = "/v1/audio/transcriptions"
AUDIO = (TRANSCRIPTIONS, "/v1/audio/translations")

AUDIO_BODY_BYTES = 26 * 1024 * 1024
"""vLLM takes files of 25 MiB (`VLLM_MAX_AUDIO_CLIP_FILESIZE_MB`) and refuses longer ones itself; the rest is for the
form's other fields."""

ADMINISTRATIVE = frozenset(
    (
        # Sleep, pause, elastic scaling, shutdown: they end or change the service for all users.
        *("/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/shutdown"),
        *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/release_kv_cache_memory"),
        # Anyone who knows or guesses an id could end another client's request.
        *("/abort_requests", "/inference/v1/abort_requests"),
        # Arbitrary methods on the workers; profiles written to disk; the environment, secrets included; the
        # publisher of KV-cache events.
        *("/collective_rpc", "/start_profile", "/stop_profile", "/server_info", "/kv_event_sources"),
        # Weights and adapters: changing them changes the model's answers.
        *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/adapters"),
        *("/update_weights", "/init_weight_transfer_engine", "/shutdown_weight_transfer_engine"),
        *("/start_weight_update", "/start_draft_weight_update", "/finish_weight_update", "/update_weight_version"),
        *("/weight_checker", "/weight_info", "/get_world_size"),
        # Caches: emptying one is a cheap way to slow all users down.
        *("/reset_prefix_cache", "/reset_mm_cache", "/reset_encoder_cache"),
    )
)
"""vLLM's administrative routes, besides `/fault_tolerance/...` and SageMaker's `/adapters/...`."""

OPEN = frozenset(("/health", "/ping", "/metrics", "/version"))
"""Routes that need no API key: for load balancers and scrapers, and open in vLLM as well."""

_POLLED = OPEN | {"/", "/load", "/v1/models", "/docs", "/redoc", "/openapi.json"}
"""Routes that monitors, browsers and waiting clients ask again and again, whether anybody uses the model or not."""


def is_use(path: str) -> bool:
    """Whether a request for a decoded path is a sign that somebody uses the service."""
    return not (path in _POLLED or path.startswith("/v1/models/") or administrative(path))


def administrative(path: str) -> bool:
    """Whether a decoded path is an administrative route."""
    return path in ADMINISTRATIVE or f"{path}/".startswith(("/fault_tolerance/", "/adapters/"))
