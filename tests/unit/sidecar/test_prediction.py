from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uellm.sidecar.prediction import LengthQuestion, OnlineLengths, Track, features, store
from uellm.sidecar.prediction.conformal import ConformalLevel
from uellm.sidecar.prediction.lessons import LESSONS_PER_S
from uellm.sidecar.prediction.online import LEAST_VALUES, UNKNOWN_TOKENS
from uellm.sidecar.prediction.recent import Recent
from uellm.sidecar.prediction.window import MOST_WINDOWS, SIZE, Window

CHAT, CODE = LengthQuestion("/v1/chat/completions", "chat"), LengthQuestion("/v1/chat/completions", "code")


def teach(model, question, lengths):
    for tokens in lengths:
        model.observe(model.predict(question), tokens)


def test_before_any_answer_a_default_is_predicted():
    prediction = OnlineLengths().predict(CHAT)
    assert (prediction.p50, prediction.p80) == (UNKNOWN_TOKENS, 2 * UNKNOWN_TOKENS)


def test_a_source_is_predicted_by_its_own_lengths():
    model = OnlineLengths()
    for _ in range(100):
        teach(model, CHAT, [20])
        teach(model, CODE, [500])
    assert model.predict(CHAT).p50 == pytest.approx(20)
    assert model.predict(CODE).p50 == pytest.approx(500)


def test_a_new_tenant_is_predicted_by_all_others_until_it_has_values_of_its_own():
    model = OnlineLengths()
    teach(model, CHAT, [100] * 50)
    assert model.predict(CODE).p50 == pytest.approx(100)
    teach(model, CODE, [7] * LEAST_VALUES)
    assert model.predict(CODE).p50 < 20


def test_prompt_length_is_used_if_it_helps():
    model, source = OnlineLengths(), random.Random(1)
    for _ in range(400):
        short = source.random() < 0.5
        teach(model, LengthQuestion("/v1/completions", prompt_tokens=20 if short else 2000), [10 if short else 1000])
    assert model.predict(LengthQuestion("/v1/completions", prompt_tokens=25)).p50 == pytest.approx(10, rel=0.2)
    assert model.predict(LengthQuestion("/v1/completions", prompt_tokens=1500)).p50 == pytest.approx(1000, rel=0.2)


def test_words_of_the_prompt_predict_long_answers_if_nothing_else_does():
    model, source = OnlineLengths(), random.Random(1)
    for _ in range(600):
        essay = source.random() < 0.5
        text = "write an essay about the sea" if essay else "answer yes or no: is the sea wet"
        teach(model, LengthQuestion("/v1/completions", prompt_tokens=8, text=text), [800 if essay else 2])
    essay = model.predict(LengthQuestion("/v1/completions", prompt_tokens=8, text="write an essay about winter"))
    answer = model.predict(LengthQuestion("/v1/completions", prompt_tokens=8, text="answer yes or no: is it cold"))
    assert essay.p50 > 20 * answer.p50


@pytest.mark.parametrize("drift", [1.0, 1.002])
def test_p80_and_p90_have_their_nominal_coverage_even_while_lengths_drift(drift):
    model, source = OnlineLengths(), random.Random(1)
    covered80 = covered90 = 0
    count, median = 6000, 100.0
    for _ in range(count):
        median = min(median * drift, 50_000)
        prediction = model.predict(CHAT)
        tokens = max(1, round(source.lognormvariate(0, 0.8) * median))
        covered80 += tokens <= prediction.p80
        covered90 += tokens <= prediction.p90
        model.observe(prediction, tokens)
    assert covered80 / count == pytest.approx(0.80, abs=0.02)
    assert covered90 / count == pytest.approx(0.90, abs=0.02)


def test_the_requests_limit_caps_the_scheduled_length():
    model = OnlineLengths()
    teach(model, CHAT, [100] * 10)
    lengths = model.predict(CHAT).lengths(16)
    assert (lengths.p50, lengths.p80) == (16, 16)
    assert model.predict(CHAT).lengths(None).p50 == pytest.approx(100)


def test_an_answer_that_the_limit_cut_teaches_nothing_about_longer_ones():
    model = OnlineLengths()
    teach(model, CHAT, [100] * 10)
    for _ in range(50):
        model.observe(model.predict(CHAT), 16, truncated=True)
    assert model.predict(CHAT).p50 == pytest.approx(100)


def test_an_answer_that_the_limit_cut_late_says_that_answers_are_longer():
    model = OnlineLengths()
    teach(model, CHAT, [10] * 10)
    for _ in range(50):
        model.observe(model.predict(CHAT), 200, truncated=True)
    assert model.predict(CHAT).p50 == pytest.approx(200)


def test_an_answer_without_a_token_teaches_nothing():
    model = OnlineLengths()
    teach(model, CHAT, [0, 0, 0, 0, 0])
    assert model.predict(CHAT).p50 == UNKNOWN_TOKENS


def test_a_window_slides():
    window = Window()
    for value in range(SIZE + 10):
        window.add(float(value))
    assert len(window) == SIZE
    assert (window.quantile(0.0), window.quantile(1.0)) == (10.0, SIZE + 9.0)


def test_sources_are_bounded_and_the_one_used_least_lately_goes():
    model = OnlineLengths()
    for number in range(MOST_WINDOWS + 5):
        teach(model, LengthQuestion("/r", "a", number), [7])
    assert len(model.sources.by_key) == len(model.buckets.by_key) == MOST_WINDOWS
    assert () in model.sources.by_key
    assert ("a", "/r", 0) not in model.sources.by_key


def test_which_forecaster_is_best_is_known_of_more_sources_than_have_windows():
    model = OnlineLengths()
    for number in range(MOST_WINDOWS + 5):
        teach(model, LengthQuestion("/r", "a", number), [7])
    assert len(model.errors.by_key) == MOST_WINDOWS + 8  # each template, the client, its route, and all


@given(st.lists(st.sampled_from("abc")))
def test_what_is_kept_is_in_the_order_of_its_last_use(names):
    recent, used = Recent[list[int]](list, 2), dict[tuple[str, ...], int]()
    for name in names:
        for values in recent.use([(name,), ()]):
            values.append(1)
        for key in ((), (name,)):
            used[key] = used.pop(key, 0) + 1
        if len(used) > 2:
            del used[next(iter(used))]
    assert [(key, len(values)) for key, values in recent.by_key.items()] == list(used.items())


def lessons(model, question, times_s):
    """Of requests at these times, those whose answers are learned from."""
    return [now_s for now_s in times_s if model.observe(model.predict(question, now_s), 100)]


def each_s(per_s, seconds, from_s=1000.0):
    """Times of so many requests a second."""
    return [from_s + number / per_s for number in range(round(per_s * seconds))]


def test_every_answer_of_a_client_with_few_requests_is_learned_from():
    times_s = each_s(LESSONS_PER_S / 2, 10)
    assert lessons(OnlineLengths(), CHAT, times_s) == times_s


def test_of_a_client_with_many_requests_so_many_answers_a_second_are_learned_from():
    taught = lessons(OnlineLengths(), CHAT, each_s(2000, 30))
    assert len([now_s for now_s in taught if now_s >= 1002]) / 28 == pytest.approx(LESSONS_PER_S, rel=0.1)


def test_a_second_after_a_client_became_quiet_every_answer_is_learned_from():
    model = OnlineLengths()
    lessons(model, CHAT, each_s(2000, 5))
    lessons(model, CHAT, each_s(LESSONS_PER_S / 2, 1, from_s=1005.0))
    later_s = each_s(LESSONS_PER_S / 2, 5, from_s=1006.1)
    assert lessons(model, CHAT, later_s) == later_s


def test_a_client_with_few_requests_is_learned_from_beside_one_with_many():
    model = OnlineLengths()
    for number, now_s in enumerate(each_s(1000, 10)):
        lessons(model, CHAT, [now_s])
        if number % 100 == 0:
            assert lessons(model, CODE, [now_s])


def test_a_client_whose_prompts_all_begin_differently_has_no_more_lessons():
    model = OnlineLengths()
    questions = [LengthQuestion("/r", "a", template) for template in range(10_000)]
    taught = [bool(lessons(model, each, [now_s])) for each, now_s in zip(questions, each_s(1000, 10), strict=True)]
    assert sum(taught[2000:]) / 8 == pytest.approx(LESSONS_PER_S, rel=0.2)


@pytest.mark.parametrize(("burst", "every_s"), [(64, 60.0), (64, 1.0), (2000, 10.0)])
def test_bursts_in_the_order_of_their_lengths_are_covered_like_any_others(burst, every_s):
    model, source = OnlineLengths(), random.Random(1)
    covered, count = 0, 0
    for number in range(6000 // burst + 8):
        begun = [model.predict(CHAT, number * every_s) for _ in range(burst)]
        lengths = sorted(max(1, round(source.lognormvariate(5, 1))) for _ in begun)
        for prediction, tokens in zip(begun, lengths, strict=True):
            model.observe(prediction, tokens)
            covered += number > 7 and tokens <= prediction.p80
            count += number > 7
    assert covered / count == pytest.approx(0.8, abs=0.08)


def test_the_words_of_a_prompt_are_worked_out_only_where_they_matter(monkeypatch):
    model, worked_out, of = OnlineLengths(), [], features.of
    monkeypatch.setattr(features, "of", lambda text, *rest: (worked_out.append(text), of(text, *rest))[1])
    teach(model, CHAT, [100] * 5)
    lessons(model, CHAT, each_s(2000, 2))
    worked_out.clear()
    predictions = [model.predict(CHAT, now_s) for now_s in each_s(2000, 1, from_s=1002.0)]
    assert worked_out == []
    taught = sum(model.observe(prediction, 100) for prediction in predictions)
    assert len(worked_out) == taught < 200


def test_a_busy_clients_words_still_predict_its_long_answers():
    model, source = OnlineLengths(), random.Random(1)
    for now_s in each_s(1000, 12):
        essay = source.random() < 0.5
        text = "write an essay about the sea" if essay else "answer yes or no: is the sea wet"
        question = LengthQuestion("/v1/completions", prompt_tokens=8, text=text)
        model.observe(model.predict(question, now_s), 800 if essay else 2)
    essay = model.predict(
        LengthQuestion("/v1/completions", prompt_tokens=8, text="write an essay about winter"), 1012.0
    )
    answer = model.predict(LengthQuestion("/v1/completions", prompt_tokens=8, text="answer yes or no: is it"), 1012.0)
    assert essay.p50 > 20 * answer.p50


def test_a_level_moves_until_its_coverage_is_right():
    level = ConformalLevel(0.9)
    for _ in range(100):
        level.learn(covered=False)
    assert level.level > 0.98
    for _ in range(10_000):
        level.learn(covered=True)
    assert level.level == 0.5


def test_features_hold_no_word_of_the_prompt():
    found = features.of("my secret is hunter2", 5, ("acme",))
    assert all(isinstance(index, int) and 0 <= index < 1 << features.BITS for index in found)


def test_a_very_long_prompt_costs_no_more_than_its_ends():
    long = features.of("sea " * 100_000, 100_000, ())
    assert len(long) < 4 * features.MOST_WORDS


@given(st.text(alphabet=st.characters(max_codepoint=127)) | st.text(alphabet="aB 1`?:\0_"))
def test_words_of_ascii_text_are_those_of_any_text(text):
    head, tail = text[: len(text) // 2], text[len(text) // 2 :]
    assert features._ascii_words(head, tail) == (features._any_words(head), features._any_words(tail))


def test_what_was_learned_survives_a_restart(tmp_path):
    model, path = OnlineLengths(), tmp_path / "lengths.json"
    teach(model, LengthQuestion("/v1/completions", "a", 7, 30, "write a long poem"), [300, 290, 310, 320, 305] * 20)
    store.save(store.dump(store.snapshot(model)), path)
    again = store.parse(path.read_bytes())
    question = LengthQuestion("/v1/completions", "a", 7, 30, "write a long poem")
    assert again.predict(question).p50 == pytest.approx(model.predict(question).p50, rel=1e-4)
    assert again.levels["p90"].level == model.levels["p90"].level
    assert list(tmp_path.iterdir()) == [path]


def test_no_prompt_is_in_the_file():
    model = OnlineLengths()
    teach(model, LengthQuestion("/v1/completions", "a", 7, 30, "xyzzy plugh"), [300] * 9)
    assert "xyzzy" not in "".join(store.dump(store.snapshot(model)))


def damaged(**changes):
    return json.dumps(json.loads("".join(store.dump(store.snapshot(OnlineLengths())))) | changes).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        damaged(version=2),
        damaged(bits=3),
        damaged(weights="!"),
        damaged(weights="AAAA"),
        damaged(windows={}),
        damaged(windows={"source": [[{}, ""]], "bucket": [], "words": []}),
        damaged(losses=[[["a"], [1.0]]]),
        damaged(levels={"p80": 2.0, "p90": 0.9}),
        damaged(levels={"p80": "x", "p90": 0.9}),
        b"[" * 100_000,
        damaged(losses=[[["a"], [1.0, 1.0, 1.0, 10**400]]]),
        damaged(windows={"source": [[["a"], ""]], "bucket": [], "words": []}),
        damaged(windows={"source": [[["a"], "AAAAAA=="]], "bucket": [], "words": [[["a"], ""]]}),
    ],
    ids=range(18),
)
def test_a_file_that_is_not_what_was_written_is_refused(content):
    with pytest.raises(ValueError, match=r".+"):
        store.parse(content)


def test_a_save_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "lengths.json"
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.save(["new"], path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_track_record_measures_the_last_predictions():
    model, track, source = OnlineLengths(), Track(), random.Random(1)
    for _ in range(2000):
        question, tokens = source.choice([(CHAT, 20), (CODE, 500)])
        prediction = model.predict(question)
        tokens = max(1, round(tokens * source.lognormvariate(0, 0.1)))
        track.add(prediction, tokens)
        model.observe(prediction, tokens)
    accuracy = track.accuracy()
    assert accuracy.requests == 1000
    assert accuracy.tau > 0.45
    assert accuracy.tau_source_median > 0.45
    assert accuracy.coverage_p90 == pytest.approx(0.9, abs=0.03)
    assert accuracy.bucket_share > 0.75
    assert accuracy.mean_absolute_error_tokens < 30


def test_without_requests_there_is_nothing_to_report():
    assert Track().accuracy().tau is None
