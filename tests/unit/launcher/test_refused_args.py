from __future__ import annotations

import pytest

from uellm.planner.vllm.refused_flags import REFUSED, refused_args


@pytest.mark.parametrize("flag", sorted(REFUSED))
def test_every_refused_flag_is_found_with_and_without_a_value(flag):
    assert [found for found, _ in refused_args([flag, "x"])] == [flag]
    assert [found for found, _ in refused_args([f"{flag}=x"])] == [flag]


@pytest.mark.parametrize("written", ["--api_key", "--api-ke", "--por", "--tensor_parallel_size", "-n2", "-r0", "--"])
def test_other_spellings_of_a_refused_flag_are_found(written):
    assert [found for found, _ in refused_args([written])] == [written]


@pytest.mark.parametrize(
    "args",
    [
        ["--max-num-seqs", "8"],
        ["--model-impl", "transformers"],
        ["--config-format=hf"],
        ["-cc.mode=2"],
        ["-O3"],
        ["--enable-expert-parallel", "-ep"],
        ["--hf-overrides", '{"--port": 1}'],
        ["--seed", "-1"],
        ["--tokenizer-revision", "main"],
    ],
)
def test_flags_a_user_may_set_are_let_through(args):
    assert list(refused_args(args)) == []
