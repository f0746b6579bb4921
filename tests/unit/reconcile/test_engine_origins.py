"""The sidecar answers those web pages that the engine's own arguments allow."""

from __future__ import annotations

from typing import Any

import pytest

from uellm.api import parse_service
from uellm.reconcile.children.configmap import sidecar_document
from uellm.reconcile.children.engine_origins import engine_origins


@pytest.mark.parametrize(
    ("args", "allowed"),
    [
        ([], {}),
        (["--allowed-origins", '["https://a"]'], {"allowedOrigins": ["https://a"]}),
        (['--allowed_origins=["*"]', "--seed", "7"], {"allowedOrigins": ["*"]}),
        (["--allowed-origins", '["https://a"]', "--allowed-origins", "[]"], {}),
        (
            ["--allow-credentials", "--allowed-origins", '["https://a", "https://b"]'],
            {"allowedOrigins": ["https://a", "https://b"], "allowCredentials": True},
        ),
        (["--allow-credentials", "--no-allow-credentials", '--allowed-origins=["*"]'], {"allowedOrigins": ["*"]}),
        (["--allow-credentials"], {}),
        (["--allowed-origins"], {}),
        (["--allowed-origins", "https://a"], {}),
        (["--allowed-origins", "[1]"], {}),
        (["--allowed-origins", '"https://a"'], {}),
    ],
)
def test_the_last_list_counts_and_what_vllm_would_refuse_allows_nothing(args: list[str], allowed: Any) -> None:
    assert engine_origins(args) == allowed


def http_of(spec: dict[str, Any]) -> Any:
    document = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "llama", "namespace": "default"},
        "spec": {"model": {"uri": "hf://a/b"}, **spec},
    }
    return sidecar_document(parse_service(document)).to_dict().get("http")


def test_they_are_told_to_the_sidecar_beside_what_the_spec_sets_and_nothing_without_them() -> None:
    engine = {"args": ["--allowed-origins", '["https://a"]']}
    assert http_of({"engine": engine}) == {"allowedOrigins": ["https://a"]}
    assert http_of({"engine": engine, "http": {"idleTimeout": "5m"}}) == {
        "idleTimeout": "5m",
        "allowedOrigins": ["https://a"],
    }
    assert http_of({"engine": {"args": ["--seed", "7"]}}) is None
