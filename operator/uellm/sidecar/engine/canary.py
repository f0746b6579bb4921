"""The request that shows whether an engine makes progress: the smallest piece of work of its task. Pure."""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

from uellm.api.sidecar_document import EngineTask
from uellm.vllm_routes import TRANSCRIPTIONS

JSON_TYPE = b"application/json"
BOUNDARY = "uellm-canary"
SAMPLES_PER_S, SILENCE_S = 16_000, 0.2


class Canary(NamedTuple):
    """A POST to the engine."""

    path: str
    content_type: bytes
    body: bytes


def canary_of(task: EngineTask, model: str) -> Canary:
    """The request for an engine of this task: a token, the vector or score of a dot, a transcript of silence."""
    if task in ("Embed", "Score"):
        # Every engine with a pooling runner has this route, whatever else it has.
        return Canary("/pooling", JSON_TYPE, json.dumps({"model": model, "input": "."}).encode())
    if task == "Transcribe":
        return Canary(TRANSCRIPTIONS, f"multipart/form-data; boundary={BOUNDARY}".encode(), _form(model))
    body = {"model": model, "prompt": ".", "max_tokens": 1, "temperature": 0}
    return Canary("/v1/completions", JSON_TYPE, json.dumps(body).encode())


def _form(model: str) -> bytes:
    name = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="model"\r\n\r\n{model}\r\n'
    file = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="silence.wav"\r\n'
    end = f"\r\n--{BOUNDARY}--\r\n"
    return b"".join((name.encode(), file.encode(), b"Content-Type: audio/wav\r\n\r\n", _silence(), end.encode()))


def _silence() -> bytes:
    """A WAV file of 16-bit samples on one channel."""
    samples = bytes(2 * int(SAMPLES_PER_S * SILENCE_S))
    layout = struct.pack("<IHHIIHH", 16, 1, 1, SAMPLES_PER_S, 2 * SAMPLES_PER_S, 2, 16)
    chunks = b"WAVEfmt " + layout + b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks
