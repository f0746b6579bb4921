from __future__ import annotations

import pytest

from uellm.errors import PlanError
from uellm.planner.vllm.flags import UserArgs, resolve


@pytest.mark.parametrize(
    ("args", "value"),
    [
        (("--max-num-seqs", "64"), 64),
        (("--max-num-seqs=64",), 64),
        (("--max_num_seqs", "64"), 64),
        (("--max-num-seqs", "8", "--max-num-seqs", "64"), 64),
        (("--max-num-seqs", "1k"), 1000),
        (("--max-num-seqs", "1K"), 1024),
        (("--max-num-seqs", "1.5k"), 1500),
        (("--enforce-eager",), None),
    ],
)
def test_a_number_is_read_as_the_engine_reads_it(args: tuple[str, ...], value: int | None) -> None:
    assert UserArgs(args).number("--max-num-seqs") == value


@pytest.mark.parametrize("text", ["", "0", "-1", "x", "1.5", "1e3"])
def test_a_value_that_is_not_a_positive_whole_number_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a positive whole number"):
        UserArgs((f"--max-num-seqs={text}",)).number("--max-num-seqs")


@pytest.mark.parametrize("text", ["0", "1.01", "-0.5", "half", ".0"])
def test_a_value_that_is_not_a_share_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a share"):
        UserArgs((f"--gpu-memory-utilization={text}",)).share("--gpu-memory-utilization")


def test_planned_flags_come_first_and_users_flags_take_precedence() -> None:
    user = UserArgs(("--max-num-seqs", "8", "--seed", "1"))
    planned = [("--max-num-seqs", "64"), ("--max-model-len", "4096")]
    assert resolve(user, planned) == ("--max-model-len", "4096", "--max-num-seqs", "8", "--seed", "1")
