"""Who had how much lately: virtual token counters (Sheng et al., Fairness in Serving LLMs, OSDI 2024).

A tenant's counter grows by one for a token of its prompts and by two for a token of its answers, and halves every
minute. Who is new, or was away for longer than that, starts no lower than the least of those that are active: no credit
is saved up. Who has but a moment between two requests was not away.
"""

from __future__ import annotations

import heapq
from collections import Counter

OUTPUT_COST = 2.0
HALF_LIFE_S = 60.0

LEAST_WEIGHT = 0.5
"""A tenant that had far more than the mean counts half: it gives way first, but not whatever it asks."""

REBASE = 2.0**40
MOST_KNOWN = 4096


class Fairness:
    """Counters of tenants, kept times a scale that doubles every half-life, so that time alone touches none of them."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._left_s: dict[str, float] = {}
        self._active: Counter[str] = Counter()
        self._least: list[tuple[float, str]] = []
        self._sum = 0.0
        self._start_s = 0.0

    def arrived(self, tenant: str, now_s: float) -> None:
        """A request of the tenant waits or runs from now on. O(log n), amortised."""
        if tenant not in self._active:
            counter = self._counters.get(tenant, 0.0)
            if now_s - self._left_s.get(tenant, -HALF_LIFE_S) >= HALF_LIFE_S:
                counter = max(counter, self._least_counter())
            if len(self._counters) > MOST_KNOWN:
                self._counters = {name: self._counters[name] for name in self._active}
                self._left_s.clear()
            self._counters[tenant] = counter
            self._sum += counter
            heapq.heappush(self._least, (counter, tenant))
        self._active[tenant] += 1

    def left(self, tenant: str, now_s: float) -> None:
        """One of its requests is over."""
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant]
            self._left_s[tenant] = now_s
            self._sum = self._sum - self._counters[tenant] if self._active else 0.0

    def charge(self, tenant: str, prompt_tokens: float, output_tokens: float, now_s: float) -> None:
        """The engine works for a tenant that is active."""
        scale = 2.0 ** ((now_s - self._start_s) / HALF_LIFE_S)
        if scale > REBASE:
            self._rebase(now_s, scale)
            scale = 1.0
        cost = (prompt_tokens + OUTPUT_COST * output_tokens) * scale
        # What is given back counts for more than it did when it was taken, so the counter is kept from going below 0.
        counter = max(self._counters[tenant] + cost, 0.0)
        self._sum += counter - self._counters[tenant]
        self._counters[tenant] = counter

    def weight(self, tenant: str) -> float:
        """What a request of the tenant counts beside others': 1 for who had no more than the mean of the active."""
        counter = self._counters.get(tenant, 0.0)
        active = len(self._active)
        mean = self._sum / active if active else 0.0
        if counter <= mean or counter <= 0.0:
            return 1.0
        share = mean / counter
        return share if share > LEAST_WEIGHT else LEAST_WEIGHT

    def _least_counter(self) -> float:
        least = self._least
        while least:
            counter, tenant = least[0]
            if tenant not in self._active:
                heapq.heappop(least)
            elif counter < self._counters[tenant]:
                heapq.heapreplace(least, (self._counters[tenant], tenant))
            else:
                return counter
        return 0.0

    def _rebase(self, now_s: float, scale: float) -> None:
        self._counters = {tenant: counter / scale for tenant, counter in self._counters.items()}
        self._least = [(self._counters[tenant], tenant) for tenant in self._active]
        heapq.heapify(self._least)
        self._sum = sum(self._counters[tenant] for tenant in self._active)
        self._start_s = now_s
