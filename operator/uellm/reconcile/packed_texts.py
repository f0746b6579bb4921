"""Texts by name, compressed together: of a thousand revisions, those of one or two are looked at at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

import msgspec

_LEVEL = 1
"""Higher ones save little more, and take longer."""


class PackedTexts(Mapping[str, str]):
    """An immutable mapping of names to texts, in the order in which they were given."""

    __slots__ = ("_packed",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._packed = zlib.compress(msgspec.json.encode(dict(texts)), _LEVEL)

    def __getitem__(self, name: str) -> str:
        return self._unpacked()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return len(self._unpacked())

    def _unpacked(self) -> dict[str, str]:
        texts: dict[str, str] = msgspec.json.decode(zlib.decompress(self._packed))
        return texts
