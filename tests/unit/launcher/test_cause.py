"""The cause of an engine's failure, found in what vLLM printed.

`tests/data/engine-failures/NAME.txt` is the output, NAME.cause what a person is to read. Those that begin with `gpu-`
have the texts of vLLM's and torch's sources, for want of a GPU; the others were recorded from vLLM 0.32 on a CPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from uellm.launcher.cause import LONGEST, find_cause, parse
from uellm.launcher.output import LINES_KEPT, LastLines

CORPUS = Path(__file__).parents[2] / "data" / "engine-failures"
NAMES = sorted(path.stem for path in CORPUS.glob("*.txt"))


@pytest.mark.parametrize("name", NAMES)
def test_the_cause_is_found_in_the_last_lines(name):
    kept = LastLines()
    for line in (CORPUS / f"{name}.txt").read_text().splitlines():
        kept.add(line)
    assert find_cause(kept.all()) == (CORPUS / f"{name}.cause").read_text().strip()


def test_every_output_has_its_cause():
    assert sorted(path.stem for path in CORPUS.glob("*.cause")) == NAMES
    assert len(NAMES) >= 8


def test_a_line_is_parsed_whatever_its_colours():
    line = "\x1b[0;36m(Worker_TP0 pid=9)\x1b[0;0m \x1b[31mERROR\x1b[0m 11-28 10:00:00 [core.py:9]   File x"
    assert parse(line) == ("Worker", "ERROR", "  File x")
    assert parse("plain text") == ("", "", "plain text")


def test_an_output_without_an_error_has_no_cause():
    assert find_cause(["loading", "INFO 11-28 10:00:00 [core.py:1] Free memory on device (1/2 GiB) on startup."]) == ""


def test_consequences_alone_are_better_than_nothing():
    line = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."
    assert find_cause([line]).startswith("RuntimeError: Engine core initialization failed")


def test_a_crash_of_the_interpreter_is_a_cause():
    lines = ["Fatal Python error: Segmentation fault", "", "Current thread 0x1 (most recent call first):"]
    assert find_cause(lines) == "Fatal Python error: Segmentation fault"


def test_a_cause_is_one_line_of_a_bounded_length():
    assert len(find_cause(["ValueError: " + "x" * 5000])) == LONGEST
    assert find_cause(["ValueError: a   b\tc"]) == "ValueError: a b c"


def test_one_processs_lines_do_not_displace_anothers():
    kept = LastLines()
    kept.add("(Worker_TP0 pid=1) ValueError: the cause")
    for number in range(3 * LINES_KEPT):
        kept.add(f"(Worker_TP1 pid=2) line {number}")
    assert kept.all()[0] == "(Worker_TP0 pid=1) ValueError: the cause"
    assert len(kept.all()) == LINES_KEPT + 1
