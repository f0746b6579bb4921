"""The smallest request of each task, on real sockets and by the formats' own parsers."""

from __future__ import annotations

import io
import json
import wave
from email.parser import BytesParser
from email.policy import HTTP

import pytest

from uellm.sidecar.engine import liveness
from uellm.sidecar.engine.canary import canary_of

STILL = """\
vllm:num_requests_running{engine="0"} 1
vllm:generation_tokens_total{engine="0"} 1
"""


def test_a_writer_writes_one_token():
    canary = canary_of("Generate", "m")
    assert canary.path == "/v1/completions"
    assert json.loads(canary.body)["max_tokens"] == 1


@pytest.mark.parametrize("task", ["Embed", "Score"])
def test_an_engine_without_output_tokens_computes_one_prompt(task):
    canary = canary_of(task, "m")
    assert canary.path == "/pooling"
    assert json.loads(canary.body) == {"model": "m", "input": "."}


def test_a_transcriber_hears_a_moment_of_silence():
    canary = canary_of("Transcribe", "whisper")
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + canary.content_type + b"\r\n\r\n" + canary.body)
    model, file = message.iter_parts()
    assert (model.get_param("name", header="content-disposition"), model.get_content().strip()) == ("model", "whisper")
    with wave.open(io.BytesIO(file.get_payload(decode=True))) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(0.2)


@pytest.mark.parametrize(("task", "path"), [("Embed", "/pooling"), ("Generate", "/v1/completions")])
async def test_a_still_engine_gets_the_canary_of_its_task(engine, launch, eventually, monkeypatch, task, path):
    monkeypatch.setattr(liveness, "STILL_S", 0.05)
    engine.metrics, engine.script = STILL, engine.on_word
    harness = await launch(figures_poll_s=0.01, document={"classes": [], "model": "m", "engine": {"task": task}})
    asked = harness.ask(b"{}")
    await eventually(lambda: path in [received.path for received in engine.received])
    for received in engine.received:
        received.go_on.set()
    assert (await asked)[0] == 200
