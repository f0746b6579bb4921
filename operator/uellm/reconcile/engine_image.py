"""The engine's image where nobody names another one, and how to know it under other names. Pure."""

from __future__ import annotations

STOCK_ENGINE_IMAGE = "vllm/vllm-openai:v0.32.0"


def is_stock(image: str) -> bool:
    """Whether an image is vLLM's own, or a copy of it in another registry: its last name and its tag are the same.

    >>> is_stock("registry.local:5000/mirror/vllm-openai:v0.32.0"), is_stock("vllm/vllm-openai:v0.32.0-cu126")
    (True, False)
    """
    tagged, at, _ = image.rpartition("@")
    return _last_name(tagged if at else image) == _last_name(STOCK_ENGINE_IMAGE)


def _last_name(image: str) -> str:
    return image.rpartition("/")[2]
