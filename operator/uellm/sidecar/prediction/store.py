"""The predictor's learned state in a file on the pod's volume, so that a restarted sidecar continues with it.

The file is replaced atomically: a crash leaves the old one. If it cannot be read, learning starts from nothing. It
holds no prompts: only weights of hashed words, and lengths by hashed source.
"""

from __future__ import annotations

import json
import os
from array import array
from base64 import b64decode, b64encode
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from uellm.sidecar.prediction.conformal import ConformalLevel
from uellm.sidecar.prediction.features import BITS
from uellm.sidecar.prediction.online import FORECASTERS, OnlineLengths
from uellm.sidecar.prediction.source import LengthSource
from uellm.sidecar.prediction.window import MOST_WINDOWS, Window

VERSION = 1


Snapshot = Mapping[str, Any]
"""What a model knew at one time."""


def snapshot(model: OnlineLengths) -> Snapshot:
    """A copy that later learning does not change. Takes a few milliseconds at most, on the event loop."""
    sources = model.sources.by_key.items()
    return {
        "version": VERSION,
        "bits": BITS,
        "weights": model.linear.weights[:],
        "squares": model.linear.squares[:],
        "windows": {
            "source": [(key, source.lengths.values()) for key, source in sources],
            "bucket": [(key, window.values()) for key, window in model.buckets.by_key.items()],
            "words": [(key, source.residuals.values()) for key, source in sources],
        },
        "losses": [(key, errors.copy()) for key, errors in model.errors.by_key.items()],
        "levels": {name: level.level for name, level in model.levels.items()},
    }


def dump(taken: Snapshot) -> Iterator[str]:
    """Serialise a snapshot for `parse`, in pieces.

    A full one takes about 0.1 s, in another thread. One call of C for all of it would keep the event loop from running.
    """
    return json.JSONEncoder(default=_text).iterencode(taken)


def parse(content: bytes) -> OnlineLengths:
    """The model that `dump` wrote. Raises ValueError for anything else."""
    try:
        document = json.loads(content)
        if document["version"] != VERSION or document["bits"] != BITS:
            raise ValueError(f"version {document['version']!r}, bits {document['bits']!r}")
        return _model(document)
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"not what the predictor wrote: {type(error).__name__}") from error


def save(pieces: Iterable[str], path: Path) -> None:
    """Replace the file. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="ascii") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _model(document: Mapping[str, Any]) -> OnlineLengths:
    model = OnlineLengths()
    model.linear.weights = _numbers(document["weights"], 1 << BITS)
    model.linear.squares = _numbers(document["squares"], 1 << BITS)
    if min(model.linear.squares) < 0:
        raise ValueError("a sum of squares is negative")
    windows = {name: _windows(document, name) for name in FORECASTERS}
    model.errors.by_key |= {_key(key): _errors(known) for key, known in document["losses"]}
    model.buckets.by_key |= windows["bucket"]
    for key, lengths in windows["source"].items():
        model.sources.by_key[key] = source = LengthSource()
        source.lengths, source.residuals = lengths, windows["words"][key]
        if len(source.lengths) != len(source.residuals):
            raise ValueError("a source has not as many errors of its words as lengths")
    model.levels = {name: ConformalLevel(known.target, _level(document, name)) for name, known in model.levels.items()}
    return model


def _windows(document: Any, name: str) -> dict[Hashable, Window]:
    return {_key(key): Window(_numbers(values)) for key, values in document["windows"][name][-MOST_WINDOWS:]}


def _errors(known: Sequence[Any]) -> list[float]:
    if len(known) != len(FORECASTERS) + 1 or not all(isfinite(error) for error in known):
        raise ValueError("losses of another version")
    return [float(error) for error in known]


def _level(document: Mapping[str, Any], name: str) -> float:
    level = float(document["levels"][name])
    if not 0.0 < level < 1.0:
        raise ValueError(f"level {level} of {name}")
    return level


def _key(parts: Any) -> Hashable:
    if not isinstance(parts, list) or not all(isinstance(part, str | int) for part in parts):
        raise ValueError("a key is not a list of names and numbers")
    return tuple(parts)


def _text(numbers: array[float]) -> str:
    return b64encode(array("f", numbers).tobytes()).decode()


def _numbers(text: str, count: int | None = None) -> array[float]:
    numbers = array("f", b64decode(text, validate=True))
    if count is not None and len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers where there should be {count}")
    if not all(map(isfinite, numbers)):
        raise ValueError("a number is not finite")
    return numbers
