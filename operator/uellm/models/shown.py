"""Values of somebody else's file in a message: one line, however long or deep they are."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from uellm.errors import BadInput

DEEPEST, MOST_VALUES = 32, 1_000_000
"""Bounds far beyond any published config.json."""

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel = 3


def shown(value: Any) -> str:
    """The value as Python writes it, shortened."""
    return _REPR.repr(value)


def check_bounds(config: Mapping[str, Any]) -> None:
    """Raises BadInput for a config.json that is nested too deeply or too large to be one."""
    level: list[Any] = [config]
    seen = 0
    for _ in range(DEEPEST):
        inner: list[Any] = []
        for each in level:
            inner.extend(each.values() if isinstance(each, Mapping) else each)
        seen += len(inner)
        if seen > MOST_VALUES:
            raise BadInput("config", f"holds more than {MOST_VALUES:,} values, so it is no model's config.json")
        level = [each for each in inner if isinstance(each, Mapping | list | tuple)]
        if not level:
            return
    raise BadInput("config", f"is nested more than {DEEPEST} deep, so it is no model's config.json")
