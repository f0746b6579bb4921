"""LiteLLM's proxy between the official OpenAI client and the endpoint."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
from chat_cases import about, begins, declare
from probing import LONG, MESSAGES, MODEL, NO_MODEL, TOKENS, TOO_LONG, Probe, questions

READY_TIMEOUT_S = 120.0
MASTER_KEY = "sk-of-the-matrix-alone"
"""Without one the proxy does not start."""
probe = Probe("litellm")
CHAT: dict[str, Any] = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS, "messages": MESSAGES}


def free_port() -> int:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port: int = holder.getsockname()[1]
        return port


@contextmanager
def proxy() -> Iterator[str]:
    """The proxy's address."""
    base = {"api_base": f"{probe.endpoint}/v1", "api_key": "none"}
    models = [
        {"model_name": name, "litellm_params": {"model": f"hosted_vllm/{name}"} | base} for name in (MODEL, NO_MODEL)
    ]
    with tempfile.TemporaryDirectory() as folder:
        config, port = Path(folder, "config.yaml"), free_port()
        config.write_text(
            json.dumps(
                {
                    "model_list": models,
                    "general_settings": {"master_key": MASTER_KEY},
                    "router_settings": {"num_retries": 0},
                }
            )
        )
        command = [Path(sys.executable).with_name("litellm"), "--config", config, "--host", "127.0.0.1", "--port", port]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                list(map(str, command)), stdout=log, stderr=subprocess.STDOUT, env=os.environ | {"HOME": folder}
            )
        try:
            wait(process, f"http://127.0.0.1:{port}", Path(folder, "log"))
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    deadline_s = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health/liveliness", timeout=5):
                return
        except OSError:
            time.sleep(0.3)
    raise SystemExit(f"the litellm proxy does not answer: {log.read_text(errors='replace')[-2000:]}")


with proxy() as address:
    client = openai.OpenAI(base_url=address, api_key=MASTER_KEY, max_retries=0)
    chat = client.chat.completions.create

    @probe.case("answer")
    def answer() -> Any:
        return chat(**CHAT)

    @probe.case("prompt too long")
    def too_long() -> Any:
        return chat(**about(CHAT, TOO_LONG))

    @probe.case("left stream")
    def left() -> Any:
        def begin() -> bool:
            return begins(chat(**CHAT | {"max_tokens": LONG}, stream=True))

        return [probe.left(begin), chat(**CHAT)]

    @probe.case("async")
    async def asynchronous() -> Any:
        async with openai.AsyncOpenAI(base_url=address, api_key=MASTER_KEY, max_retries=0) as ours:
            return await asyncio.gather(*(ours.chat.completions.create(**about(CHAT, text)) for text in questions()))

    declare(probe, chat, CHAT)
    probe.run()
