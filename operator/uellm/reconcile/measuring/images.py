"""Whether an image is on a node, by the names that its kubelet reports. Pure.

A kubelet reports its 50 largest images, and engines' are among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def full_reference(image: str) -> str:
    """An image as container runtimes name it.

    >>> full_reference("vllm/vllm-openai:v0.32.0"), full_reference("localhost:5000/engine")
    ('docker.io/vllm/vllm-openai:v0.32.0', 'localhost:5000/engine:latest')
    """
    domain, slash, rest = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif "." not in domain and ":" not in domain and domain != "localhost":
        image = f"docker.io/{image}"
    elif domain == "index.docker.io":
        image = f"docker.io/{rest}"
    name = image.rsplit("/", 1)[-1]
    return image if ":" in name or "@" in name else f"{image}:latest"


def images_on(node: Mapping[str, Any]) -> frozenset[str]:
    """The images of a Node object, by all their names."""
    listed = (node.get("status") or {}).get("images") or ()
    return frozenset(full_reference(name) for image in listed for name in image.get("names") or ())
