"""The work that will arrive when a replica that is ordered now is ready, and how far off such forecasts were.

Several simple forecasts are made each minute: the mean of the last 1, 4 and 15 minutes, each as it is, with the trend
of the last half hour, and with the change that the same time of earlier days saw. Every one is compared with what came.
The one that was closest lately is used, and its own errors are the distribution of the next one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

MINUTE_S = 60.0
DAY_MINUTES = 1440
WINDOWS = (1, 4, 15)
"""Minutes of the means."""
TREND_MINUTES = 30
SEASON_MINUTES = 15
"""Half the width of the mean over an earlier day, in minutes."""
KEPT_ERRORS = DAY_MINUTES
SCORE_MINUTES = 240.0
"""Time over which a forecast's score fades."""
DAY_WEIGHT = 0.5
"""Of the latest day in the mean of the days."""
QUANTILES = 25
PRIOR_SIGMA = 0.15
"""Of the logarithm of an error, before any was seen."""
PRIOR_ERRORS = 60
MOST_ERROR = math.log(2.0)
"""A jump to more than the double is not prepared for: it would cost as much all the time."""
LEAST = 1e-6
"""Work in seconds for each second that is told apart from none."""

Change = str
_CHANGES: tuple[Change, ...] = ("level", "trend", "season")


class Forecaster:
    """Takes the work of each minute, and tells that of later minutes."""

    def __init__(self, minutes_ahead: int) -> None:
        """`minutes_ahead`: how far ahead the forecasts are that are compared with what comes."""
        self._recent: deque[float] = deque(maxlen=TREND_MINUTES)
        self._days: list[float | None] = [None] * DAY_MINUTES
        self._today: list[float | None] = [None] * DAY_MINUTES
        self._minute = -1
        self.look_ahead(minutes_ahead)

    def look_ahead(self, minutes: int) -> None:
        """Forecast so far ahead from now on. Errors of the forecasts until now do not count for these."""
        self.minutes_ahead = max(1, minutes)
        ways = len(WINDOWS) * len(_CHANGES)
        self._pending: deque[list[float]] = deque(maxlen=self.minutes_ahead)
        self._errors: list[deque[float]] = [deque(maxlen=KEPT_ERRORS) for _ in range(ways)]
        self._scores = [0.0] * ways

    def scale(self, factor: float) -> None:
        """All work that was seen is counted by another measure. The errors are ratios and stay."""
        self._recent = deque((work * factor for work in self._recent), maxlen=TREND_MINUTES)
        self._pending = deque(([work * factor for work in each] for each in self._pending), maxlen=self.minutes_ahead)
        self._days, self._today = (
            [None if work is None else work * factor for work in day] for day in (self._days, self._today)
        )

    def observe(self, minute: int, work: float) -> None:
        """The work that arrived in this minute of the clock, in seconds for each second."""
        self._minute = minute
        if len(self._pending) == self.minutes_ahead:
            self._compare(self._pending.popleft(), work)
        self._recent.append(work)
        self._remember(minute % DAY_MINUTES, work)
        self._pending.append(self._all())

    def forecast(self) -> tuple[float, list[float]]:
        """The work `minutes_ahead` from now, and equally likely factors on it, ascending."""
        if not self._recent:
            return 0.0, [1.0]
        best = min(range(len(self._scores)), key=lambda way: self._scores[way])
        return self._all()[best], self._factors(best)

    def _compare(self, forecasts: Sequence[float], work: float) -> None:
        keep = math.exp(-1.0 / SCORE_MINUTES)
        for way, forecast in enumerate(forecasts):
            error = math.log(max(work, LEAST) / max(forecast, LEAST))
            self._errors[way].append(min(max(error, -MOST_ERROR), MOST_ERROR))
            self._scores[way] = keep * self._scores[way] + (1.0 - keep) * min(error * error, 4.0)

    def _remember(self, minute_of_day: int, work: float) -> None:
        """The mean of the days is brought up to date half a day later: until then this is today."""
        self._today[minute_of_day] = work
        other = (minute_of_day + DAY_MINUTES // 2) % DAY_MINUTES
        done, self._today[other] = self._today[other], None
        if done is not None:
            before = self._days[other]
            self._days[other] = done if before is None else before + DAY_WEIGHT * (done - before)

    def _all(self) -> list[float]:
        values = list(self._recent)
        trend, season = self._trend(values), self._season()
        forecasts = []
        for window in WINDOWS:
            mean = sum(values[-window:]) / len(values[-window:])
            # The mean is that of the middle of its window.
            ahead = self.minutes_ahead + (min(window, len(values)) - 1) / 2
            forecasts += [mean, max(mean / 2, min(mean + trend * ahead, 2 * mean)), mean * season]
        return forecasts

    @staticmethod
    def _trend(values: Sequence[float]) -> float:
        """Change for each minute: the slope of the straight line with the least squares."""
        count = len(values)
        if count < 10:
            return 0.0
        middle, mean = (count - 1) / 2, sum(values) / count
        rise = sum((place - middle) * (value - mean) for place, value in enumerate(values))
        return rise * 12 / (count**3 - count)

    def _season(self) -> float:
        """By which factor earlier days changed from now to then; 1 without such days."""
        now, then = self._around(self._minute), self._around(self._minute + self.minutes_ahead)
        if now is None or then is None or now <= LEAST:
            return 1.0
        return min(max(then / now, 0.2), 5.0)

    def _around(self, minute: int) -> float | None:
        span = range(minute - SEASON_MINUTES, minute + SEASON_MINUTES + 1)
        known = [value for each in span if (value := self._days[each % DAY_MINUTES]) is not None]
        return sum(known) / len(known) if len(known) > SEASON_MINUTES else None

    def _factors(self, way: int) -> list[float]:
        """Quantiles of the errors as factors, with some assumed ones until enough were seen."""
        errors = sorted([*self._errors[way], *_PRIOR])
        count = len(errors)
        return [math.exp(errors[min(count - 1, int((place + 0.5) * count / QUANTILES))]) for place in range(QUANTILES)]


def _prior() -> list[float]:
    """Quantiles of a normal distribution with PRIOR_SIGMA (Tukey's lambda approximation)."""
    shares = [(place + 0.5) / PRIOR_ERRORS for place in range(PRIOR_ERRORS)]
    return [PRIOR_SIGMA * 4.91 * (share**0.14 - (1 - share) ** 0.14) for share in shares]


_PRIOR = _prior()
