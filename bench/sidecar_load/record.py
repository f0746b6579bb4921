"""Records what real vLLM sends on its streamed routes, chunk by chunk, for the tests of the relay.

python -m sidecar_load.record ../tests/data/recorded-streams.json

The engine is vLLM on the CPU with a small model of random weights. What counts are the bytes: which fields an event
has, in which order, and how the server cuts the stream into chunks.
"""

from __future__ import annotations

import http.client
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from sidecar_load import vllm
from sidecar_load.ways import free_port
from uellm.sidecar.wire.call import BATCH_TOKENS
from uellm_devcluster import tinymodel

TOKENS = 12
_MESSAGES = [{"role": "user", "content": "How does the import statement work?"}]
_COMMON = {"model": "tiny", "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
_STREAM = {**_COMMON, "stream": True}
_USAGE = {"stream_options": {"include_usage": True}}
_BATCHES = {
    "stream_interval": BATCH_TOKENS,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
_CHAT, _COMPLETION = {**_STREAM, "messages": _MESSAGES}, {**_STREAM, "prompt": "How does the import statement work?"}
_WHOLE_CHAT, _WHOLE_COMPLETION = {**_CHAT, "stream": False}, {**_COMPLETION, "stream": False}

REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", _CHAT),
    "chat-usage": ("/v1/chat/completions", _CHAT | _USAGE),
    "chat-logprobs": ("/v1/chat/completions", _CHAT | {"logprobs": True}),
    "chat-logprobs-usage": ("/v1/chat/completions", _CHAT | {"logprobs": True} | _USAGE),
    "chat-two": ("/v1/chat/completions", _CHAT | {"n": 2, "temperature": 1, "seed": 1}),
    "chat-batched": ("/v1/chat/completions", _CHAT | _BATCHES),
    "chat-logprobs-batched": ("/v1/chat/completions", _CHAT | {"logprobs": True} | _BATCHES),
    "completions": ("/v1/completions", _COMPLETION),
    "completions-usage": ("/v1/completions", _COMPLETION | _USAGE),
    "completions-continuous": (
        "/v1/completions",
        _COMPLETION | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "completions-batched": ("/v1/completions", _COMPLETION | {"logprobs": 1} | _BATCHES),
    "responses": (
        "/v1/responses",
        {"model": "tiny", "temperature": 0, "max_output_tokens": TOKENS, "input": _MESSAGES, "stream": True},
    ),
    "messages": (
        "/v1/messages",
        {"model": "tiny", "temperature": 0, "max_tokens": TOKENS, "messages": _MESSAGES, "stream": True},
    ),
    "whole-chat": ("/v1/chat/completions", _WHOLE_CHAT),
    "whole-chat-logprobs": ("/v1/chat/completions", _WHOLE_CHAT | {"logprobs": True}),
    "whole-completion": ("/v1/completions", _WHOLE_COMPLETION),
    "whole-completion-logprobs": ("/v1/completions", _WHOLE_COMPLETION | {"logprobs": 1}),
}


def recorded(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """The head of an answer as pairs, and its body as the chunks that it came in (a whole one: a single piece)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json", "X-Request-Id": "recorded"})
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {answer.read().decode()}")
    chunks = list(_chunks(answer)) if answer.chunked else [answer.read()]
    skipped = ("content-length", "transfer-encoding", "date")
    headers = [[name, value] for name, value in answer.getheaders() if name.lower() not in skipped]
    return {"path": path, "request": body, "headers": headers, "chunks": [chunk.decode() for chunk in chunks]}


def _chunks(answer: http.client.HTTPResponse) -> Any:
    while size := int(answer.fp.readline(), 16):
        yield answer.fp.read(size)
        answer.fp.readline()


def main(target: Path) -> None:
    """Start the engine, record, write."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        tinymodel.make(scratch / "model")
        port = free_port()
        command = vllm.engine_command(scratch / "model", port, chunk=512, sequences=8)
        with vllm.running(command, f"http://127.0.0.1:{port}/health", scratch / "engine.log"):
            recorded(port, *REQUESTS["chat"])  # the first request of all compiles
            found = {name: recorded(port, path, body) for name, (path, body) in REQUESTS.items()}
    target.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
