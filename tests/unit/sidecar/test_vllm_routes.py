"""Every route of the installed vLLM is classified: work, administration, or simply passed on."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from uellm.vllm_routes import OPEN, SCHEDULED, administrative

ROUTE = re.compile(r"(?:router|app)\.(?:get|post|put|delete|websocket|add_api_route)\(\s*\"(/[^\"]*)\"", re.MULTILINE)
PASSING = {
    *("/v1/models", "/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/load", "/docs"),
    *("/tokenize", "/detokenize", "/tokenizer_info", "/v1/messages/count_tokens"),
    *("/v1/chat/completions/render", "/v1/completions/render", "/v1/messages/render", "/v1/responses/render"),
    *("/v1/chat/completions/derender", "/v1/completions/derender", "/cohere/v2/chat/render"),
}
REFUSED_AS_WEBSOCKET = {"/v1/realtime"}
OF_OTHER_PROCESSES = {"/ready", "/readyz"}  # of the supervisor of several data-parallel servers


def test_every_route_of_the_installed_vllm_is_known():
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the engine-cpu extra is not installed")
    entrypoints = Path(spec.submodule_search_locations[0]) / "entrypoints"
    found = {route for path in entrypoints.rglob("*.py") for route in ROUTE.findall(path.read_text())}
    assert {"/v1/chat/completions", "/sleep", "/v1/realtime"} <= found
    known = SCHEDULED.keys() | OPEN | PASSING | REFUSED_AS_WEBSOCKET | OF_OTHER_PROCESSES
    assert sorted(route for route in found if route not in known and not administrative(route)) == []
