"""Requests as a client sends them: a port forward, a streamed chat, and a few requests of two SLO classes."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.demo.story import StepFailed

_ANSWER_TIMEOUT_S = 120


@dataclass(frozen=True)
class Answer:
    """The answer to one request."""

    slo_class: str
    status: int
    text: str
    tokens: int
    ttft_s: float
    e2e_s: float


@contextmanager
def port_forward(shell: Shell, resource: str, port: int) -> Iterator[int]:
    """Forward a loopback port to `port` of a Service or pod with kubectl while the block runs."""
    process = shell.start(f"kubectl port-forward --address 127.0.0.1 {resource} :{port}")
    try:
        yield _forwarded_port(process, resource)
    finally:
        process.terminate()
        process.wait()


def _forwarded_port(process: subprocess.Popen[str], resource: str) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    match = re.search(r"127\.0\.0\.1:(\d+)", line)
    if not match:
        raise StepFailed(f"no port forward to {resource}: {line.strip()}")
    return int(match[1])


def stream_chat(
    port: int, model: str, prompt: str, *, slo_class: str = "", max_tokens: int = 24, show: bool = False
) -> Answer:
    """One streamed chat completion. `show` prints the tokens as they arrive."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Content-Type": "application/json", **({"x-slo-class": slo_class} if slo_class else {})}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_ANSWER_TIMEOUT_S)
    began_s = time.monotonic()
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise StepFailed(f"chat completion: HTTP {response.status}: {response.read()[:300].decode()}")
        text, tokens, ttft_s = _read_stream(response, began_s, show)
    finally:
        connection.close()
    return Answer(slo_class, response.status, text, tokens, ttft_s, time.monotonic() - began_s)


def _read_stream(response: http.client.HTTPResponse, began_s: float, show: bool) -> tuple[str, int, float]:
    text, tokens, first_s, done = "", 0, 0.0, False
    for line in response:
        if not line.startswith(b"data: "):
            continue
        data = line[6:].strip()
        if data == b"[DONE]":
            done = True
            break
        event = json.loads(data)
        if "error" in event:
            raise StepFailed(f"the stream reports an error: {event['error']}")
        tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
        for choice in event["choices"]:
            first_s = first_s or time.monotonic() - began_s
            piece = choice["delta"].get("content") or ""
            text += piece
            if show:
                print(piece, end="", flush=True)
    if not done:
        raise StepFailed(f"the stream ended after {tokens} tokens without [DONE]")
    return text, tokens, first_s


def of_two_classes(port: int, model: str, classes: tuple[str, str], *, requests: int = 8) -> list[Answer]:
    """Send `requests` chat completions at once, alternating between the classes."""
    with ThreadPoolExecutor(requests) as pool:
        futures = [
            pool.submit(
                stream_chat, port, model, f"Tell me about request {index}.", slo_class=classes[index % 2], max_tokens=16
            )
            for index in range(requests)
        ]
        return [future.result() for future in futures]


def answers_table(answers: list[Answer]) -> str:
    """One line for each request."""
    lines = [f"{'CLASS':12} {'STATUS':>6} {'TOKENS':>6} {'TTFT ms':>8} {'E2E ms':>8}"]
    for answer in answers:
        times = f"{answer.ttft_s * 1e3:8.0f} {answer.e2e_s * 1e3:8.0f}"
        lines.append(f"{answer.slo_class:12} {answer.status:6} {answer.tokens:6} {times}")
    return "\n".join(lines)
