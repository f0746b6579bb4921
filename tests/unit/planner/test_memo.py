from __future__ import annotations

from uellm.planner.memo import by_identity


def test_a_result_is_worked_out_once_for_an_object_and_again_for_an_equal_one():
    asked = []
    length = by_identity(4)(lambda value: asked.append(value) or len(value))
    one, other = [1, 2], [1, 2]
    assert [length(one), length(one), length(other)] == [2, 2, 2]
    assert len(asked) == 2


def test_only_the_last_objects_are_remembered():
    asked = []
    length = by_identity(2)(lambda value: asked.append(value) or len(value))
    values = [[0] * count for count in range(3)]
    for value in [*values, values[0]]:
        length(value)
    assert len(asked) == 4
