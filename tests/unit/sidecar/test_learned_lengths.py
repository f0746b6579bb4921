"""The learned model: its benefit, and that nothing else depends on it. The children are real processes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import replace
from math import log

import pytest

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths
from uellm.sidecar.prediction.learned import Child, LearnedLengths, process
from uellm.sidecar.prediction.learned.frames import HEADER, FrameKind, content, frame, header, row
from uellm.sidecar.prediction.learned.lengths import LESSONS, MOST_WAITING
from uellm.sidecar.prediction.service import Predictor

LONG, SHORT = 600, 20
SECRET = "xyzzy"


def question(number: int) -> tuple[LengthQuestion, int]:
    """A poem is long unless it must be brief. Other answers are always short, so no sum of words predicts the
    length.
    """
    words = [word for bit, word in ((1, "poem"), (2, "brief")) if number & bit]
    text = f"please do for me what I now say {' '.join(words)} {SECRET}"
    return LengthQuestion("/v1/completions", SECRET, 7, 30, text), LONG if words == ["poem"] else SHORT


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@asynccontextmanager
async def running(learned: LearnedLengths):
    task = asyncio.create_task(learned.child.run())
    learned.child.wanted = True
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Scripted:
    """Stands in for the child: records what was sent, and answers by hand."""

    def __init__(self, took, lost):
        self.took, self.lost = took, lost
        self.pid, self.wanted, self.starts = 1, True, 1
        self.sent: list[tuple[FrameKind, bytes]] = []
        self.takes = True
        self.killed = False

    def send(self, kind, content):
        if self.takes:
            self.sent.append((kind, content))
        return self.takes

    def kill(self):
        self.killed = True

    def trained(self):
        self.took(FrameKind.TRAINED, content([1000.0, 0.5, 1e8]))

    def answer(self, *tokens: float):
        self.took(FrameKind.ANSWER, content([0.001, *map(log, tokens)]))


@pytest.fixture
def learned() -> LearnedLengths:
    return LearnedLengths(Scripted)


PREDICTION = OnlineLengths().predict(question(1)[0])


async def asked_and_answered(learned: LearnedLengths, said: float, became: int, times: int = 1) -> list[float]:
    """The predictions used for this number of requests, one after the other."""
    used: list[float] = []
    for _ in range(times):
        asked = learned.ask(PREDICTION, lambda better: used.append(better.p50))
        await asyncio.sleep(0)
        learned.child.answer(said)
        learned.observe(PREDICTION, asked, became)
    return used


async def test_it_distinguishes_answers_that_the_online_model_cannot_and_is_then_used(eventually):
    predictor, used = Predictor(), dict[int, float]()
    learned = predictor.learned

    async def serve(*numbers: int) -> None:
        asked = []
        for number in numbers:
            asking, tokens = question(number)
            prediction = predictor.predict(asking)
            told = predictor.ask(prediction, lambda better, kind=number % 4: used.update({kind: better.p50}))
            asked.append((prediction, tokens, told))
        await eventually(lambda: all(told is None or told.use is None for _, _, told in asked), 40)
        for prediction, tokens, told in asked:
            predictor.observe(prediction, tokens, asked=told)

    async with running(learned):
        await eventually(lambda: learned.child.pid, 40)
        pid = learned.child.pid
        for number in range(1024):
            await serve(number)
        await eventually(lambda: learned.trained is not None, 40)
        for _ in range(4):
            await serve(*range(60))
        figures = learned.figures()
        assert {kind: tokens > 200 for kind, tokens in used.items()} == {0: False, 1: True, 2: False, 3: False}
        assert figures["mean_absolute_error_tokens"] < predictor.figures()["mean_absolute_error_tokens"] / 3
        assert figures["answers_used"] > 0
        assert figures["resident_bytes"] < 400e6
    assert gone(pid)


async def test_a_killed_child_is_started_again_and_the_online_model_goes_on_meanwhile(eventually, caplog):
    predictor = Predictor()
    predictor.learned = learned = LearnedLengths(lambda *hooks: Child(*hooks, command=["cat"], first_pause_s=0.0))
    async with running(learned):
        for _ in range(3):
            await eventually(lambda: learned.child.pid)
            pid = learned.child.pid
            os.kill(pid, signal.SIGKILL)
            await eventually(lambda pid=pid: learned.child.pid != pid)
            prediction = predictor.predict(question(1)[0])
            assert predictor.ask(prediction, lambda _: None) is None
            predictor.observe(prediction, 50)
        await eventually(lambda: learned.child.starts > 3)
        learned.child.wanted = False
        await eventually(lambda: learned.child.pid is None)
    assert caplog.text.count("only the online predictor is used") == 3
    assert predictor.figures()["requests"] == 3


async def test_a_child_that_cannot_start_or_answers_nonsense_does_no_harm(eventually):
    for command in (["/nowhere"], ["sh", "-c", "echo nonsense; exec cat"]):
        learned = LearnedLengths(lambda *hooks, command=command: Child(*hooks, command=command, first_pause_s=0.0))
        async with running(learned):
            await eventually(lambda learned=learned: learned.child.starts > 2)
        assert learned.child.pid is None


async def test_without_lightgbm_no_child_is_started(monkeypatch, caplog):
    monkeypatch.setattr(process, "find_spec", lambda name: None)
    learned = LearnedLengths()
    async with running(learned) as task:
        await task
    assert learned.child.starts == 0
    assert "extra `predictor`" in caplog.text


def test_the_child_ends_with_its_input_even_while_it_learns():
    with subprocess.Popen(process.COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        lessons = b"".join(row(OnlineLengths().predict(question(number)[0]), 5) for number in range(1000))
        child.stdin.write(frame(FrameKind.TEACH, lessons) + frame(FrameKind.ASK, row(PREDICTION)))
        child.stdin.flush()
        size, kind = header(child.stdout.read(HEADER.size))
        assert (kind, size) == (FrameKind.ANSWER, 8)
        child.stdin.close()
        assert child.wait(20) == 0


async def test_nothing_of_a_prompt_or_a_name_goes_to_the_child(learned):
    learned.child.trained()
    prediction = OnlineLengths().predict(question(3)[0])
    asked = learned.ask(prediction, lambda _: None)
    await asyncio.sleep(0)
    for _ in range(LESSONS):
        learned.observe(prediction, asked, 10)
    assert {kind for kind, _ in learned.child.sent} == {FrameKind.ASK, FrameKind.TEACH}
    sent = b"".join(each for _, each in learned.child.sent)
    assert not any(word in sent for word in (SECRET.encode(), b"poem", b"completions"))


async def test_nobody_is_asked_before_there_is_a_model(learned):
    assert learned.ask(PREDICTION, lambda _: None) is None


async def test_it_is_used_only_where_it_was_better(learned):
    learned.child.trained()
    right = round(PREDICTION.p50)
    assert await asked_and_answered(learned, said=right * 0.1, became=right, times=3) == []
    learned.child.lost()
    learned.child.trained()
    used = await asked_and_answered(learned, said=20, became=20, times=100)
    assert len(used) > 30
    assert used[-1] == pytest.approx(20)


async def test_its_p80_and_p90_have_their_nominal_coverage(learned):
    learned.child.trained()
    source, covered80, covered90, count = random.Random(1), 0, 0, 3000
    for _ in range(count):
        asked = learned.ask(PREDICTION, lambda _: None)
        await asyncio.sleep(0)
        learned.child.answer(100.0)
        became = max(1, round(source.lognormvariate(0.5, 0.8) * 100))
        covered80 += asked.better is not None and became <= asked.better.p80
        covered90 += asked.better is not None and became <= asked.better.p90
        learned.observe(PREDICTION, asked, became)
    assert covered80 / count == pytest.approx(0.8, abs=0.02)
    assert covered90 / count == pytest.approx(0.9, abs=0.02)


async def test_one_batch_is_out_at_a_time_and_those_waiting_are_bounded(learned):
    learned.child.trained()
    told = [learned.ask(PREDICTION, lambda _: None) for _ in range(2 * MOST_WAITING)]
    assert sum(asked is not None for asked in told) == MOST_WAITING
    await asyncio.sleep(0)
    batches = 0
    while learned.answers < MOST_WAITING:
        batches += 1
        assert len(learned.child.sent) == batches
        learned.child.answer(*[100.0] * 256)


async def test_a_child_that_accepts_nothing_leaves_all_requests_with_the_online_model(learned):
    learned.child.trained()
    learned.child.takes = False
    lost = [learned.ask(PREDICTION, lambda _: None) for _ in range(300)]
    await asyncio.sleep(0)
    assert all(asked.use is None for asked in lost)
    learned.child.takes = True
    learned.ask(PREDICTION, lambda _: None)
    await asyncio.sleep(0)
    assert [kind for kind, _ in learned.child.sent] == [FrameKind.ASK]


async def test_a_child_that_does_not_answer_is_ended(learned, monkeypatch, eventually):
    monkeypatch.setattr("uellm.sidecar.prediction.learned.lengths.PATIENCE_S", 0.0)
    learned.child.trained()
    learned.ask(PREDICTION, lambda _: None)
    await eventually(lambda: learned.child.killed)


async def test_off_by_default_there_is_no_child_and_no_lightgbm(launch):
    harness = await launch()
    assert harness.sidecar.lengths.learned.child.starts == 0
    assert not {"lightgbm", "uellm.sidecar.prediction.learned.forest"} & set(sys.modules)
    async with harness.client.get(harness.management("/metrics")) as response:
        assert "uellm_learned_predictor" not in await response.text()


async def test_the_configuration_switches_it_on_and_off_and_it_ends_with_the_sidecar(launch, eventually):
    off = {"classes": []}
    harness = await launch(off | {"prediction": {"learned": True}})
    child = harness.sidecar.lengths.learned.child
    await eventually(lambda: child.pid)
    first = child.pid
    async with harness.client.get(harness.management("/metrics")) as response:
        assert "uellm_learned_predictor_running 1" in await response.text()
    harness.configure(off)
    harness.sidecar.reload()
    await eventually(lambda: gone(first))
    harness.configure(off | {"prediction": {"learned": True}})
    harness.sidecar.reload()
    await eventually(lambda: child.pid)
    second = child.pid
    await harness.sidecar.__aexit__(None, None, None)
    assert gone(second)


class Knowing(Predictor):
    """Has a better prediction a moment later."""

    def ask(self, prediction, use):
        asyncio.get_running_loop().call_soon(use, replace(prediction, p50=7.0, p80=9.0))


async def test_a_better_prediction_replaces_the_request_s_own_while_it_waits(engine, launch, eventually):
    engine.healthy = False
    harness = await launch(ready=False)
    harness.sidecar.proxy.lengths = Knowing()
    asking = asyncio.ensure_future(harness.post(json.dumps({"messages": []}).encode()).__aenter__())
    await eventually(lambda: harness.sidecar.dispatcher.queued == 1)
    engine.healthy = True
    response = await asking
    assert response.headers["x-uellm-predicted-tokens"] == "7"
    response.release()
