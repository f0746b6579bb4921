"""What goes through the pipes between the sidecar and the learned model: frames of size, kind and content.

    TEACH, ASK  rows: six float32 (the length's logarithm, NaN where it is asked for; see `numbers`), the number of
                features, and each of these in two bytes
    ANSWER      float32: processor seconds that the batch took, then the length's logarithm, row by row
    TRAINED     float32: rows that were learned from, processor seconds that it took, resident bytes

A row is numbers and hashed words: neither a prompt nor anybody's name can be read back from it.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from enum import IntEnum
from math import log, nan
from struct import Struct, pack

from uellm.sidecar.prediction.online import Prediction

HEADER = Struct("<IB")
ROW = Struct("<6fH")

MOST_BYTES = 16 * 1024 * 1024
"""Size of a frame at most; a larger one is not ours."""


class FrameKind(IntEnum):
    """What a frame holds."""

    TEACH = 1
    ASK = 2
    ANSWER = 3
    TRAINED = 4


def frame(kind: FrameKind, content: bytes) -> bytes:
    """A frame as it goes through the pipe."""
    return HEADER.pack(len(content), kind) + content


def row(prediction: Prediction, tokens: int | None = None) -> bytes:
    """The row of a request; `tokens`: the real length of its answer, if it is known."""
    found = () if prediction.wording is None else prediction.wording.features
    length = nan if tokens is None else log(tokens)
    return pack(f"<6fH{len(found)}H", length, *numbers(prediction), len(found), *found)


def numbers(prediction: Prediction) -> tuple[float, float, float, float, float]:
    """Logarithms of the prompt's size and of the online forecasts.

    The trees need not learn again what the forecasters know of a source, and each forecast was made before the length
    was known.
    """
    source, bucket, words = (nan if median is None else median for median in prediction.medians)
    forecast = nan if prediction.wording is None else prediction.wording.forecast
    return log(max(prediction.question.prompt_tokens, 1)), source, bucket, words, forecast


def floats(content: bytes) -> Sequence[float]:
    """The numbers of an answer. Raises ValueError."""
    return array("f", content)


def content(values: Sequence[float]) -> bytes:
    """The content of an answer, for `floats`."""
    return array("f", values).tobytes()


def header(data: bytes) -> tuple[int, FrameKind]:
    """Size and kind of the frame that follows. Raises ValueError if it is not a header of ours."""
    size, kind = HEADER.unpack(data)
    if size > MOST_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    return size, FrameKind(kind)
