"""vLLM's routes (0.32.0's entrypoints): work for the GPU, its operator's own, and the rest, which simply passes."""

from __future__ import annotations

from enum import Enum


class Kind(Enum):
    """How a scheduled route's body and answer are to be read."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    POOLING = "pooling"
    """One pass over the prompt and no tokens out: embeddings, scores, classes."""
    OTHER = "other"
    """Work for the GPU whose body is not looked into, such as audio."""


SCHEDULED = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETIONS,
    "/v1/responses": Kind.RESPONSES,
    "/v1/messages": Kind.MESSAGES,
    "/v1/embeddings": Kind.POOLING,
    "/v2/embed": Kind.POOLING,
    "/pooling": Kind.POOLING,
    "/classify": Kind.POOLING,
    "/score": Kind.POOLING,
    "/v1/score": Kind.POOLING,
    "/rerank": Kind.POOLING,
    "/v1/rerank": Kind.POOLING,
    "/v2/rerank": Kind.POOLING,
    "/generative_scoring": Kind.POOLING,
    "/v1/systemone": Kind.OTHER,
    "/v1/chat/completions/batch": Kind.OTHER,
    "/inference/v1/generate": Kind.OTHER,
    "/cohere/v2/chat": Kind.OTHER,
    "/invocations": Kind.OTHER,
    "/v1/audio/transcriptions": Kind.OTHER,
    "/v1/audio/translations": Kind.OTHER,
}
"""Routes whose POST is work for the GPU that a class's targets speak of."""

ADMINISTRATIVE = frozenset(
    (
        # Sleep, pause, elastic scaling, shutdown: they end or alter the service for everybody.
        *("/sleep", "/wake_up", "/is_sleeping", "/pause", "/resume", "/is_paused", "/shutdown"),
        *("/scale_elastic_ep", "/is_scaling_elastic_ep", "/release_kv_cache_memory"),
        # Whoever knows or guesses an id could end another's request.
        *("/abort_requests", "/inference/v1/abort_requests"),
        # Arbitrary methods on the workers; profiles written to disk; the environment, tokens included, read out;
        # where the KV cache's events are published.
        *("/collective_rpc", "/start_profile", "/stop_profile", "/server_info", "/kv_event_sources"),
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

OPEN = frozenset(("/health", "/ping", "/metrics", "/version"))
"""Routes that need no API key: what load balancers and scrapers ask, and vLLM itself leaves open."""


def administrative(path: str) -> bool:
    """Whether a decoded path is one of vLLM's operator's."""
    return path in ADMINISTRATIVE or f"{path}/".startswith("/fault_tolerance/")
