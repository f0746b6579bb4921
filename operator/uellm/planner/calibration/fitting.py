"""Non-negative least squares on the larger of two linear models, robust against outliers.

    seconds = max(u . t, v . t) + e,   t >= 0;   u and v are two rows of figures for each measurement

If it were known which of the two models determines each measurement, this would be plain non-negative least squares. So
two steps alternate (the "max-affine" alternation of Magnani and Boyd, 2009): fit t for the current choice of models,
then let each measurement choose the model that is larger under t. Each start, a threshold on an ordering of the
measurements, ends in a local optimum, and the best one is used. Errors are relative. Beyond HUBER times their median
absolute deviation they count linearly instead of squared (Huber 1964), so a step that was slowed by an interruption
does not distort the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

HUBER = 1.345  # 95 % as efficient as least squares on Gaussian errors (Huber 1981, section 4.5)
MOST_TURNS = 30
STARTS = 8


@dataclass(frozen=True)
class Fit:
    """The figures t, and for each measurement whether u determines it."""

    values: Array
    shows_first: NDArray[np.bool_]
    loss: float


def fit(first: Array, second: Array, seconds: Array, order: Array) -> Fit:
    """The best t.

    `first`, `second`: (measurements, figures). `order` (measurements,): u determines the measurements where it is
    small.
    """
    thresholds = np.unique(np.quantile(np.unique(order), np.linspace(0.0, 1.0, STARTS)))
    fits = [_alternate(first, second, seconds, order <= threshold) for threshold in thresholds]
    return min(fits, key=lambda found: found.loss)


def predicted(first: Array, second: Array, values: Array) -> Array:
    """Seconds of each measurement under the model."""
    larger: Array = np.maximum(first @ values, second @ values)
    return larger


def _alternate(first: Array, second: Array, seconds: Array, side: NDArray[np.bool_]) -> Fit:
    best: Fit | None = None
    for _ in range(MOST_TURNS):
        values = _robust(np.where(side[:, None], first, second), seconds)
        loss = _huber((predicted(first, second, values) - seconds) / seconds)
        if best is None or loss < best.loss:
            best = Fit(values, side, loss)
        chosen = first @ values >= second @ values
        if bool(np.all(chosen == side)):
            break
        side = chosen
    assert best is not None
    return best


def _robust(rows: Array, seconds: Array) -> Array:
    """Fit and reweight until the weights converge: outliers count less."""
    weights = np.ones(len(seconds))
    values = np.zeros(rows.shape[1])
    for _ in range(MOST_TURNS):
        before = values
        scale = np.sqrt(weights) / seconds
        values = non_negative(rows * scale[:, None], seconds * scale)
        errors = np.abs(rows @ values - seconds) / seconds
        limit = HUBER * max(1.4826 * float(np.median(errors)), 1e-9)
        weights = np.minimum(1.0, limit / np.maximum(errors, 1e-12))
        if np.allclose(values, before, rtol=1e-6, atol=0.0):
            break
    return values


def _huber(errors: Array) -> float:
    limit = HUBER * max(1.4826 * float(np.median(np.abs(errors))), 1e-9)
    size = np.abs(errors)
    return float(np.sum(np.where(size <= limit, size**2, limit * (2 * size - limit))))


def non_negative(rows: Array, wanted: Array) -> Array:
    """The t >= 0 that minimises |rows t - wanted|: the best unconstrained solution over all sets of positive figures.

    With at most five figures that is at most 31 systems of five rows, after one QR decomposition: exact, without a step
    size.
    """
    scale = np.linalg.norm(rows, axis=0)
    scale[scale == 0] = 1.0  # no measurement depends on the figure, so it stays 0
    q, triangle = np.linalg.qr(rows / scale)
    target, width = q.T @ wanted, rows.shape[1]
    best, least = np.zeros(width), float(target @ target)
    for size in range(width, 0, -1):
        for columns in combinations(range(width), size):
            found = np.linalg.lstsq(triangle[:, columns], target, rcond=None)[0]
            if (found < 0).any():
                continue
            residual = triangle[:, columns] @ found - target
            if (error := float(residual @ residual)) < least:
                least, best = error, np.zeros(width)
                best[list(columns)] = found
        if size == width and best.any():
            break  # an unconstrained solution that is not negative is the best
    answer: Array = best / scale
    return answer
