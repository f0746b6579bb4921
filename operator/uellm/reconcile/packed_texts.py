"""Texts by name, compressed: of a thousand revisions, those of one or two are looked at at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping

_LEVEL = 1
"""Higher ones save little more, and take longer."""


class PackedTexts(Mapping[str, str]):
    """An immutable mapping of names to texts."""

    __slots__ = ("_packed",)

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._packed = {name: zlib.compress(text.encode(), _LEVEL) for name, text in texts.items()}

    def __getitem__(self, name: str) -> str:
        return zlib.decompress(self._packed[name]).decode()

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PackedTexts):
            return self._packed == other._packed
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment] # as other mappings
