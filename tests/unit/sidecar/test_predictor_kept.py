"""What the predictor has learned survives a restart. A volume that accepts no write does no other harm."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, store
from uellm.sidecar.prediction.service import FILE, Predictor
from uellm.sidecar.prediction.source import LengthSource
from uellm.sidecar.prediction.window import MOST_WINDOWS, SIZE, Window

QUESTION = LengthQuestion("/v1/chat/completions", "tenant", 1, 100, "Summarise this")


async def taught(path) -> Predictor:
    predictor = Predictor(path)
    for _ in range(20):
        predictor.observe(predictor.predict(QUESTION), 40, truncated=False)
    await predictor.save()
    return predictor


async def test_a_restart_begins_where_the_last_one_ended(tmp_path):
    before = await taught(tmp_path / FILE)
    assert 35 <= before.predict(QUESTION).p50 <= 45
    assert Predictor(tmp_path / FILE).predict(QUESTION).p50 == pytest.approx(before.predict(QUESTION).p50, rel=1e-3)


async def test_an_unreadable_file_is_logged_and_ignored(tmp_path, caplog):
    (tmp_path / FILE).write_text("{")
    assert Predictor(tmp_path / FILE).predict(QUESTION).p50 > 100
    assert "learning starts from nothing" in caplog.text


async def test_a_volume_that_cannot_be_written_is_logged(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        await taught(tmp_path / "absent" / FILE)
    assert "cannot be saved" in caplog.text


async def test_what_is_learned_in_service_is_kept_at_its_end_and_is_in_the_metrics(engine, launch, tmp_path):
    harness = await launch(state=tmp_path)
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 7}}\n\n'
    engine.script = engine.stream(b'data: {"choices": []}\n\n', usage, b"data: [DONE]\n\n")
    for _ in range(5):
        await harness.ask(json.dumps({"messages": [], "stream": True}).encode())
    async with harness.client.get(harness.management("/metrics")) as response:
        assert "uellm_predictor_requests 5\n" in await response.text()
    await harness.sidecar.lengths.save()
    kept = Predictor(tmp_path / FILE).predict(LengthQuestion("/v1/chat/completions"))
    assert 6 <= kept.p50 <= 8


async def test_learning_goes_on_while_the_state_is_saved(tmp_path):
    predictor = await taught(tmp_path / FILE)
    saved = (tmp_path / FILE).read_text()
    taken = store.snapshot(predictor._model)
    for tokens in (10, 20, 30):
        predictor.observe(predictor.predict(QUESTION), tokens)
    assert "".join(store.dump(taken)) == saved
    await predictor.save()
    assert (tmp_path / FILE).read_text() != saved


async def test_a_save_that_nobody_waits_for_any_more_is_not_mixed_with_the_next(tmp_path, monkeypatch):
    predictor = await taught(tmp_path / FILE)
    begun, go_on, save = threading.Event(), threading.Event(), store.save

    def slow(pieces, path):
        begun.set()
        go_on.wait(10)
        save(pieces, path)

    monkeypatch.setattr(store, "save", slow)
    predictor.observe(predictor.predict(QUESTION), 10)
    first = asyncio.create_task(predictor.save())
    await asyncio.to_thread(begun.wait, 10)
    first.cancel()
    begun.clear()
    predictor.observe(predictor.predict(QUESTION), 500)
    last = asyncio.create_task(predictor.save())
    await asyncio.sleep(0)
    assert not begun.is_set()
    go_on.set()
    await last
    assert (tmp_path / FILE).read_text() == "".join(store.dump(store.snapshot(predictor._model)))


async def test_the_event_loop_serialises_nothing(tmp_path, monkeypatch):
    threads = set()

    def text(numbers):
        threads.add(threading.get_ident())
        return text_of(numbers)

    text_of = store._text
    monkeypatch.setattr(store, "_text", text)
    await taught(tmp_path / FILE)
    assert threads
    assert threading.get_ident() not in threads


def test_a_full_state_is_serialised_in_short_pieces():
    """Each is one call of C, during which the event loop cannot run."""
    model = OnlineLengths()
    for number in range(MOST_WINDOWS):
        model.sources.by_key["tenant", number] = source = LengthSource()
        source.lengths, source.residuals = Window(range(SIZE)), Window(range(SIZE))
        model.buckets.by_key["tenant", number] = Window(range(SIZE))
    longest = max(store.dump(store.snapshot(model)), key=len)
    assert len(longest) < 200_000


async def test_an_answer_whose_words_were_not_looked_at_does_not_teach_the_learned_model(monkeypatch):
    """Its request came before the model's process was there."""
    predictor = Predictor()
    before = predictor.predict(QUESTION, 1.0)
    monkeypatch.setattr(type(predictor.learned.child), "pid", 1)
    predictor.observe(before, 40)
    assert predictor.learned._lessons == []
    predictor.observe(predictor.predict(QUESTION, 1.0), 40)
    assert len(predictor.learned._lessons) == 1
