"""The learned model: gradient-boosted trees over hashed words and the online forecasts. Used in the child only.

Unlike a linear model, trees see how words change each other's meaning. They minimise the absolute error of the
logarithm, so they predict the median.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from uellm.sidecar.prediction.learned.frames import ROW

if TYPE_CHECKING:
    from lightgbm import Booster

WORDS = 256
"""Features are folded to this many: on public prompts, twice as many took twice the memory for no better order."""

NUMBERS = 5
TREES = 150
PARAMETERS = {
    "objective": "l1",
    "num_leaves": 63,
    "learning_rate": 0.1,
    "feature_fraction_bynode": 0.3,
    "min_data_in_leaf": 20,
    "num_threads": 1,
    "seed": 1,
    "verbosity": -1,
}

Matrix = NDArray[np.float32]


def matrix(content: bytes) -> tuple[Matrix, Matrix]:
    """Rows of a frame as (requests x features), and the lengths' logarithms."""
    numbers: list[Sequence[float]] = []
    words: list[NDArray[np.uint16]] = []
    at = 0
    while at < len(content):
        *values, count = ROW.unpack_from(content, at)
        at += ROW.size
        numbers.append(values)
        words.append(np.frombuffer(content, "<u2", count, at))
        at += 2 * count
    rows = np.zeros((len(numbers), NUMBERS + WORDS), np.float32)
    targets = np.array(numbers, np.float32).reshape(-1, 1 + NUMBERS)
    rows[:, :NUMBERS] = targets[:, 1:]
    for row, found in zip(rows, words, strict=True):
        row[NUMBERS + found % WORDS] = 1.0
    return rows, targets[:, 0]


def train(rows: Matrix, lengths: Matrix) -> Booster:
    """Train a model. Takes about a second of processor time for 20,000 rows."""
    import lightgbm

    return lightgbm.train(PARAMETERS, lightgbm.Dataset(rows, lengths), TREES)


def predict(model: Booster, rows: Matrix) -> list[float]:
    """Predicted logarithms of the lengths."""
    logarithms: list[float] = np.asarray(model.predict(rows, num_threads=1)).tolist()
    return logarithms
