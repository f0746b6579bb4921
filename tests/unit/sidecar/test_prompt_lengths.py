"""How many tokens a prompt has, as the engine's counts teach it: what is wrong once does not stay wrong."""

from __future__ import annotations

from random import Random

import pytest

from uellm.prompt import Prompt, Ratio, of_request
from uellm.prompt.ratio import LEAST_CHARACTERS, MOST_CHARACTERS, MOST_TEMPLATE_TOKENS
from uellm.vllm_routes import RouteKind

ENGLISH = 4.0


def chat(characters: int) -> Prompt:
    return Prompt(characters=characters, messages=1, templates=1)


def taught(*counts: tuple[int, int], times: int = 1) -> Ratio:
    ratio = Ratio()
    for _ in range(times):
        for characters, tokens in counts:
            ratio.learn(chat(characters), tokens)
    return ratio


def test_short_chats_with_a_long_template_say_nothing_about_long_prompts():
    ratio = taught((49, 417), times=380)
    assert ratio.tokens(chat(49)) == pytest.approx(417, rel=0.05)
    assert ratio.tokens(chat(8000)) == pytest.approx(2405, rel=0.05)
    assert ratio.characters_per_token == pytest.approx(ENGLISH, rel=0.05)


def test_the_template_and_the_ratio_are_found_from_prompts_of_different_lengths():
    random, ratio = Random(1), Ratio()
    for _ in range(300):
        characters = round(random.lognormvariate(6, 1.5)) + 1
        ratio.learn(chat(characters), 5 + 300 + round(characters / 2.8 * random.lognormvariate(0, 0.1)))
    assert ratio.template_tokens == pytest.approx(300, rel=0.2)
    assert ratio.characters_per_token == pytest.approx(2.8, rel=0.2)


def test_long_prompts_of_one_length_are_estimated_well_after_a_few():
    assert taught((8000, 5338), times=6).tokens(chat(8000)) == pytest.approx(5338, rel=0.05)


@pytest.mark.parametrize("wrong", [(2_000_000, 600), (50, 30_000), (8000, 16_000), (100_000, 1), (1, 10_000)])
def test_after_a_wrong_lesson_a_few_right_ones_restore_the_estimate(wrong):
    ratio = taught(wrong, times=100)
    assert LEAST_CHARACTERS <= ratio.characters_per_token <= MOST_CHARACTERS
    assert 0 <= ratio.template_tokens <= MOST_TEMPLATE_TOKENS
    for _ in range(8):
        for characters in (100, 2000, 8000):
            ratio.learn(chat(characters), 5 + characters // 4)
    assert ratio.tokens(chat(8000)) == pytest.approx(2005, rel=0.25)


def test_one_surprise_moves_the_estimate_by_a_bounded_step():
    ratio = taught((8000, 2005), times=50)
    ratio.learn(chat(8000), 200_000)
    assert ratio.tokens(chat(8000)) < 1.5 * 2005


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (RouteKind.RESPONSES, {"previous_response_id": "resp_1"}),
        (RouteKind.RESPONSES, {"truncation": "auto"}),
        (RouteKind.CHAT, {"documents": [{"text": "a"}]}),
        (RouteKind.CHAT, {"chat_template": "{{ messages }}"}),
        (RouteKind.CHAT, {"truncate_prompt_tokens": 100}),
        (RouteKind.COMPLETIONS, {"truncate_prompt_tokens": -1}),
        (RouteKind.POOLING, {"truncate_prompt_tokens": 100}),
    ],
)
def test_nothing_is_learned_from_prompts_whose_text_is_elsewhere_or_cut_off(kind, fields):
    text = "a" * 400
    body = {"messages": [{"role": "user", "content": text}], "input": text, "prompt": text}
    ratio, plain, partial = Ratio(), of_request(kind, body), of_request(kind, body | fields)
    assert (plain.partial, partial.partial) == (False, True)
    ratio.learn(partial, 30_000)
    assert ratio.characters_per_token == ENGLISH
    ratio.learn(plain, 30_000)
    assert ratio.characters_per_token != ENGLISH


def test_a_completion_has_no_template():
    ratio = taught((49, 417), times=100)
    assert ratio.tokens(of_request(RouteKind.COMPLETIONS, {"prompt": "a" * 400})) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize(
    "part",
    [
        {"image_url": "data:image/png;base64,AAAA"},
        {"image_url": {"url": "data:image/png;base64,AAAA"}},
        {"input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"image_embeds": "AAAA"},
        {"type": "video", "video": "AAAA"},
        {"type": "prompt_embeds", "data": "AAAA"},
    ],
)
def test_every_medium_is_one_with_or_without_a_type(part):
    found = of_request(RouteKind.CHAT, {"messages": [{"role": "user", "content": [part]}]})
    assert (found.media, found.characters) == (1, 0)


def test_a_tools_parameter_is_text_whatever_its_name():
    schema = {"properties": {"image_url": {"description": "where the image is"}}}
    tools = [{"function": {"name": "show", "parameters": schema}}]
    found = of_request(RouteKind.CHAT, {"messages": [], "tools": tools})
    assert (found.media, found.characters) == (0, len("show") + len("where the image is"))
