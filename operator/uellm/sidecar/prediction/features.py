"""Features of a prompt that predict the length of its answer, as indices into the weights of a linear model.

Words are hashed and never kept, so a prompt cannot be read back from the model.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import pairwise
from zlib import crc32

BITS = 14
"""16,384 weights: 128 KiB, with few collisions among frequent words."""

HEAD_CHARACTERS = 320
TAIL_CHARACTERS = 160
MOST_WORDS = 64
"""Instructions are at the beginning or the end of a prompt; the material between them is skipped."""

_MASK = (1 << BITS) - 1
_WORD = re.compile(r"[^\W\d_]+|\d+|```|[?:]")
_ASCII_WORD = re.compile(r"[a-z]+|[0-9]+|```|[?:]")
"""The same for ASCII in lower case, in half the time: a range is one comparison, a category several look-ups."""
_PAIRS = 4
_WORD_BEGINS = crc32(b"word ")
"""`crc32(x, _WORD_BEGINS)` is the checksum of `word x`."""


def of(text: str, prompt_tokens: int, *sources: object) -> tuple[int, ...]:
    """Indices of the features of a prompt; `sources`: what it belongs to (route, tenant, template)."""
    features = [*_of_sources(max(prompt_tokens, 1).bit_length(), sources)]
    words = _words(text)
    features += [crc32(word.encode(), _WORD_BEGINS) & _MASK for word in set(words)]
    features += [crc32(f"pair {one} {other}".encode()) & _MASK for one, other in pairwise(words[: _PAIRS + 1])]
    return tuple(features)


@lru_cache(maxsize=1024)
def _of_sources(length_bits: int, sources: tuple[object, ...]) -> tuple[int, ...]:
    """Indices that most requests of one client have in common."""
    names = [f"tokens {length_bits}", *(f"source {level} {source}" for level, source in enumerate(sources))]
    return tuple([crc32(name.encode()) & _MASK for name in names])


def _words(text: str) -> list[str]:
    found = _ASCII_WORD.findall if text.isascii() else _WORD.findall
    head: list[str] = found(text[:HEAD_CHARACTERS].lower())[:MOST_WORDS]
    if len(text) <= HEAD_CHARACTERS:
        return head
    return head + found(text[max(HEAD_CHARACTERS, len(text) - TAIL_CHARACTERS) :].lower())[-MOST_WORDS // 2 :]
