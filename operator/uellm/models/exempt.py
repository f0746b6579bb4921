"""The modules that a quantisation leaves unchanged.

Checkpoints name them in many ways: whole paths, ends or parts of them (`lm_head`, `mlp.gate`), `*` for anything, `re:`
before a regular expression. A name matches where its dotted parts appear in a row in the module's path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from math import comb, prod
from typing import Any

from uellm.errors import BadInput
from uellm.models.shown import shown
from uellm.models.storage import SECTION

LISTS = ("modules_to_not_convert", "ignored_layers", "ignore", "llm_int8_skip_modules", "exclude_modules", "exclude")
# Prefixes that a multimodal wrapper gives to the text model's paths.
WRAPPED = ("", "language_model.", "model.language_model.")

LONGEST_PATTERN, LONGEST_PATH = 1000, 100
MOST_CHOICES, MOST_STEPS = 512, 5_000_000
"""What an expression may take for one path. The expressions are a stranger's: those of published checkpoints repeat
single characters alone, choose among the layers and the matrices, and take thousands of steps."""
_ATOM = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]")
_UNBOUNDED = re.compile(r"\)(?:[*+]|\{)|\(\?(?:#|[aiLmsu]*x)")
"""A repeated group, or a comment, behind which one can hide."""
_SURE_END = re.compile(r"\.\*(\)?\??)\$?$")
"""What follows anything cannot fail, and is not tried again."""
_REPEAT = re.compile(r"(?<!\()(?:\?|([*+]|\{(?:[\d,]*\})?))[?+]?")


class Exempt:
    """The modules left out. `in`: whether a path, such as `model.layers.0.mlp.gate_proj`, is one."""

    def __init__(self, names: Iterable[str] = (), patterns: Iterable[str] = ()) -> None:
        plain = [_bare(name) for name in names]
        self._names = frozenset(name for name in plain if "*" not in name)
        self._globs = tuple(name for name in plain if "*" in name)
        self._patterns = tuple(re.compile(pattern) for pattern in patterns)

    def __contains__(self, path: object) -> bool:
        if not (self._names or self._globs or self._patterns):
            return False
        bare = _bare(str(path))
        if any(part in self._names or any(fnmatchcase(part, glob) for glob in self._globs) for part in _runs(bare)):
            return True
        return any(pattern.match(before + str(path)) for pattern in self._patterns for before in WRAPPED)


def read_exempt(section: Mapping[str, Any]) -> Exempt:
    """The modules that a quantization_config leaves out. Raises BadInput for a bad list or regular expression."""
    names: list[str] = []
    patterns: list[str] = []
    for field in LISTS:
        for name in _names(section, field):
            (patterns if name.startswith("re:") else names).append(name.removeprefix("re:"))
    dynamic = section.get("dynamic")  # GPTQModel: `-:` before the expression of a module that stays
    if isinstance(dynamic, Mapping):
        patterns += [str(key)[2:] for key in dynamic if str(key).startswith("-:")]
    return Exempt(names, [checked(pattern) for pattern in patterns])


def checked(pattern: str) -> str:
    """A regular expression. Raises BadInput where it is none, or where matching it could take for ever."""
    if len(pattern) > LONGEST_PATTERN or _is_slow(_ATOM.sub("x", pattern)):
        raise BadInput(
            SECTION, f"{shown(pattern)} repeats groups, or has too many wildcards or choices: matching could take hours"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise BadInput(SECTION, f"{shown(pattern)} is not a regular expression: {error}") from error
    return pattern


def _is_slow(shape: str) -> bool:
    """Whether matching an expression could take too many steps. `shape`: with a letter for each escape and set."""
    if _UNBOUNDED.search(shape):
        return True
    repeats = [found[1] for found in _REPEAT.finditer(_SURE_END.sub(r"\1", shape))]
    wide = sum(repeat is not None for repeat in repeats)
    choices = _alternatives(shape) << min(len(repeats) - wide, MOST_CHOICES)
    # Each way to share the path out among the wildcards, in each way to choose.
    return choices > MOST_CHOICES or choices * comb(LONGEST_PATH + wide, wide) > MOST_STEPS


def _alternatives(shape: str) -> int:
    """In how many ways one can go through the alternatives of all groups."""
    ways, open_groups = 1, [1]
    for character in shape:
        if character == "(":
            open_groups.append(1)
        elif character == "|":
            open_groups[-1] += 1
        elif character == ")" and len(open_groups) > 1:
            ways *= open_groups.pop()
    return ways * prod(open_groups)


def _names(section: Mapping[str, Any], field: str) -> list[str]:
    listed = section.get(field) or []
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise BadInput(f"{SECTION}.{field}", "must be a list of module names")
    return list(listed)


def _bare(path: str) -> str:
    """The path inside the text model, without a wrapper's prefix."""
    return path.rpartition("language_model.")[2].removeprefix("model.")


def _runs(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1)]
