"""The client matrix: what is compared, what is masked, and what its table says."""

from __future__ import annotations

import sys

import pytest
from clients.compare import compared, differences, masked
from clients.environments import Unavailable, install, last_line
from clients.report import FEATURES, Row, table

RAISED = {"raised": "openai.NotFoundError", "message": "no such model", "status": 404}


def verdicts(direct, through, again=None):
    return {feature: case["verdict"] for feature, case in compared(direct, through, again or {}).items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"id": "chatcmpl-a6b6157665443391"}, {"id": "chatcmpl-ad76d9757fecc546"}),
        ({"created": 1795875483, "text": "a"}, {"created": 1795875484, "text": "a"}),
        ("no answer from http://127.0.0.1:8000/v1", "no answer from http://127.0.0.1:8001/v1"),
        (["call call_0123456789ab"], ["call call_ba9876543210"]),
        ({"run": "4f1c2d3e-0000-4000-8000-0123456789ab"}, {"run": "11111111-0000-4000-8000-0123456789ab"}),
    ],
)
def test_ids_times_and_ports_are_masked(one, other):
    assert one != other
    assert masked(one) == masked(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"text": "a"}, {"text": "b"}),
        ({"usage": {"prompt_tokens": 21}}, {"usage": {"prompt_tokens": 22}}),
        ({"id": None}, {"id": "chatcmpl-a6b6157665443391"}),
        ({"finish": ["stop"]}, {"finish": ["length"]}),
        (RAISED, RAISED | {"status": 503}),
        ("tiny", "missing"),
    ],
)
def test_nothing_else_is_masked(one, other):
    assert masked(one) != masked(other)


def test_a_difference_says_where_it_is_and_both_values():
    one = {"choices": [{"text": "a", "finish": "stop"}]}
    other = {"choices": [{"text": "b"}]}
    assert list(differences(one, other)) == [
        ".choices[0].text: 'a' directly, 'b' through the sidecar",
        ".choices[0].finish: only directly",
    ]


def test_an_equal_answer_is_the_same_and_another_differs():
    assert verdicts({"answer": ["a"], "stream": ["a"]}, {"answer": ["a"], "stream": ["b"]}) == {
        "answer": "same",
        "stream": "differs",
    }


def test_a_case_that_the_other_run_lacks_differs():
    assert verdicts({"answer": ["a"]}, {}) == {"answer": "differs"}


def test_a_case_that_differs_from_itself_at_the_engine_alone_is_unsteady():
    assert verdicts({"answer": ["a"]}, {"answer": ["b"]}, {"answer": ["c"]}) == {"answer": "unsteady"}
    assert verdicts({"answer": ["a"]}, {"answer": ["b"]}, {"answer": ["a"]}) == {"answer": "differs"}


def test_a_case_that_shows_nothing_is_broken_though_both_are_equal():
    assert verdicts({"answer": RAISED}, {"answer": RAISED}) == {"answer": "broken"}
    assert verdicts({"unknown model": ["a"]}, {"unknown model": ["a"]}) == {"unknown model": "broken"}
    assert verdicts({"unknown model": RAISED}, {"unknown model": RAISED}) == {"unknown model": "same"}


def test_the_table_names_each_client_its_verdicts_its_differences_and_those_that_could_not_run():
    rows = [
        Row("one", "1.0", compared({"answer": ["a"], "tool": ["x"]}, {"answer": ["a"], "tool": ["y"]}, {})),
        Row("two", problem="not available: no such package"),
    ]
    lines = table(rows).splitlines()
    assert lines[0].split()[:3] == ["CLIENT", "VERSION", "ANSWER"]
    assert lines[1].split() == ["one", "1.0", "same", "differs"]
    assert lines[2].split() == ["two", *["-"] * len(FEATURES)]
    assert lines[3:] == [
        "one, tool: [0]: 'x' directly, 'y' through the sidecar",
        "two: not available: no such package",
    ]


def test_a_matrix_passes_only_if_every_client_ran_and_every_case_is_the_same():
    same = compared({"answer": ["a"]}, {"answer": ["a"]}, {})
    assert Row("one", cases=same).passed
    assert not Row("one", cases=compared({"answer": ["a"]}, {"answer": ["b"]}, {})).passed
    assert not Row("one", cases=same, problem="not available: no such package").passed
    assert not Row("one").passed


def test_a_failedinstallation_gives_the_last_line_of_what_was_said(tmp_path):
    failing = [sys.executable, "-c", "import sys; sys.exit('resolving\\nno such package: nothing')"]
    assert install(tmp_path, "digest", [failing]) == Unavailable("no such package: nothing")
    assert last_line("\n \n") == "it failed without a word"


def test_an_environment_of_the_same_lock_is_notinstalled_again(tmp_path):
    mark = [sys.executable, "-c", f"open({str(tmp_path / 'ran')!r}, 'a').write('x')"]
    for digest in ("one", "one", "two"):
        assert install(tmp_path, digest, [mark]) is None
    assert (tmp_path / "ran").read_text() == "xx"
