"""A linear model over hashed features, trained online with AdaGrad (Duchi et al., 2011) on the absolute error.

The absolute error makes it predict the median: a single very long answer moves it no more than any other.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import sqrt

from uellm.sidecar.prediction.features import BITS

RATE = 0.3


class LinearModel:
    """Predicts a number from the indices of the features that are present."""

    def __init__(self) -> None:
        self.weights = array("f", bytes(4 << BITS))
        self.squares = array("f", bytes(4 << BITS))

    def predict(self, features: Sequence[int]) -> float:
        """The sum of the features' weights."""
        weights = self.weights
        return sum([weights[index] for index in features])

    def learn(self, features: Sequence[int], error: float) -> None:
        """One gradient step; `error`: truth minus prediction."""
        if not features:
            return
        norm = sqrt(len(features))
        gradient = (-1.0 if error < -1.0 else 1.0 if error > 1.0 else error) / norm
        square, step = gradient * gradient, RATE * gradient
        weights, squares = self.weights, self.squares
        for index in features:
            squares[index] += square
            weights[index] += step / sqrt(squares[index] + 1e-6) / norm
