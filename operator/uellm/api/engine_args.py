"""The arguments of `vllm serve` that are not the user's to give, because a field or the pod itself decides them."""

from __future__ import annotations

from collections.abc import Iterable

from uellm.api.base import Rule

RESERVED = (
    "--host",
    "--port",
    "--uds",
    "--config",
    "--model",
    "--model-tag",
    "--served-model-name",
    "--revision",
    "--dtype",
    "--quantization",
    "-q",
    "--max-model-len",
    "--tensor-parallel-size",
    "-tp",
    "--pipeline-parallel-size",
    "-pp",
    "--data-parallel-size",
    "-dp",
    "--nnodes",
    "--node-rank",
    "--headless",
)


def reserved_argument(args: Iterable[str]) -> str | None:
    """The first argument that is reserved, or None. vLLM reads `_` in a flag as `-`."""
    return next((arg for arg in args if arg.split("=")[0].replace("_", "-") in RESERVED), None)


NOT_RESERVED = Rule(
    cel="!self.exists(arg, arg.split('=')[0].replace('_', '-') in [" + ", ".join(f"'{a}'" for a in RESERVED) + "])",
    holds=lambda args: reserved_argument(args) is None,
    message="must not hold what UELLM decides: addresses and ports, and the model, its type, length and parallel "
    "sizes, which have fields in spec.model and spec.parallelism",
)
