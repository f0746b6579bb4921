"""Lengths of requests for vectors, scores and transcripts, by which they are ordered."""

from __future__ import annotations

import io
import json
import wave

import pytest

from uellm.sidecar.scheduling import Targets
from uellm.sidecar.wire.audio import COMPRESSED_BYTES_PER_S, FRAMES_PER_S, audio_tokens
from uellm.sidecar.wire.read import Terms, read

TEXT = "x" * 400  # 100 tokens at the first ratio
TARGETS = Targets("default")


def call_of(path, body, **options):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read(path, {}, raw, TARGETS, Terms(), **options)


@pytest.mark.parametrize(
    ("path", "body", "tokens", "prompts"),
    [
        ("/v1/embeddings", {"input": TEXT}, 100, 1),
        ("/v1/embeddings", {"input": [TEXT] * 200}, 20_000, 200),
        ("/v1/embeddings", {"input": [1] * 70}, 70, 1),
        ("/v1/embeddings", {"input": [[1] * 70, [2] * 30]}, 100, 2),
        ("/v1/embeddings", {"input": []}, 1, 1),
        ("/v1/embeddings", {"messages": [{"role": "user", "content": TEXT}]}, 100, 1),
        ("/v2/embed", {"texts": [TEXT, TEXT], "input_type": "search_query"}, 200, 2),
        ("/pooling", {"input": TEXT}, 100, 1),
        ("/classify", {"input": [TEXT, TEXT]}, 200, 2),
        ("/score", {"text_1": TEXT, "text_2": TEXT}, 200, 1),
        ("/v1/score", {"text_1": TEXT, "text_2": [TEXT] * 10}, 2000, 10),
        ("/score", {"queries": [TEXT] * 3, "documents": [TEXT] * 3}, 600, 3),
        ("/rerank", {"query": TEXT, "documents": [TEXT] * 50}, 10_000, 50),
        ("/v2/rerank", {"query": TEXT, "documents": [{"content": [{"type": "text", "text": TEXT}]}]}, 200, 1),
        ("/rerank", {"query": TEXT}, 100, 1),
    ],
)
def test_all_prompts_of_a_body_count(path, body, tokens, prompts):
    call = call_of(path, {"model": "m", **body})
    assert (call.prompt_tokens, call.sequences) == (tokens, prompts)
    assert call.max_tokens == 1


def test_a_body_is_sent_as_it_came_unless_the_engine_orders_by_priority():
    raw = b'{"model": "m",\n "input": "a"}'
    assert call_of("/v1/embeddings", raw).upstream_body(7) == raw
    ordered = call_of("/v1/embeddings", raw, accepts_priority=True)
    assert json.loads(ordered.upstream_body(7)) == {"model": "m", "input": "a", "priority": 7}
    assert call_of("/generative_scoring", raw, accepts_priority=True).upstream_body(7) == raw


def form(file: bytes) -> bytes:
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return head + file + b"\r\n--b--\r\n"


def wav(seconds: float, rate: int = 16_000, channels: int = 1) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(int(seconds * rate) * 2 * channels))
    return written.getvalue()


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_a_wav_file_counts_by_its_duration(rate, channels):
    body = form(wav(10, rate, channels))
    assert call_of("/v1/audio/transcriptions", body).prompt_tokens == pytest.approx(10 * FRAMES_PER_S, rel=0.01)


def test_any_other_file_counts_by_its_bytes():
    body = form(b"ID3" + bytes(10 * COMPRESSED_BYTES_PER_S))
    assert call_of("/v1/audio/translations", body).prompt_tokens == pytest.approx(10 * FRAMES_PER_S, rel=0.01)


@pytest.mark.parametrize("body", [b"", b"RIFF", form(wav(1))[:90], b"RIFF" + bytes(40)])
def test_a_body_that_is_cut_or_no_file_counts_for_something(body):
    assert audio_tokens(body) >= 1
