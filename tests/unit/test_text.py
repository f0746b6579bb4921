"""Tables and lists of names for people."""

from __future__ import annotations

import pytest

from uellm.text import aligned, and_more


def test_the_cells_of_a_column_start_at_the_same_place():
    assert aligned([("NAME", "STATE"), ("a-long-name", "up"), ("b", "down")]) == [
        "NAME         STATE",
        "a-long-name  up",
        "b            down",
    ]


def test_named_columns_are_aligned_to_the_right():
    assert aligned([("STAGE", "BYTES"), ("0", "7"), ("1", "123456")], right={1}) == [
        "STAGE   BYTES",
        "0           7",
        "1      123456",
    ]


def test_no_line_ends_in_spaces():
    assert aligned([("A", "LONG"), ("b", "")]) == ["A  LONG", "b"]


def test_rows_of_unlike_length_are_refused():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        aligned([("a", "b"), ("c",)])


def test_as_many_names_as_the_limit_are_all_listed():
    assert and_more(["a", "b", "c"], 3, "node") == "a, b, c"


def test_names_beyond_the_limit_are_counted():
    assert and_more(["a", "b", "c", "d"], 2) == "a, b and 2 more"
    assert and_more(["a", "b", "c", "d"], 3, "node") == "a, b, c and 1 more node"
    assert and_more(["a", "b", "c", "d"], 1, "node") == "a and 3 more nodes"
