"""Fairness among tenants by virtual token counters (Sheng et al., Fairness in Serving LLMs, OSDI 2024).

A tenant's counter grows by one for each prompt token and by two for each answer token, and halves every minute. A
tenant that is new or was inactive for longer than that starts at least at the lowest counter of the active tenants, so
that nobody saves up credit. A short pause between two requests does not count as inactive.
"""

from __future__ import annotations

import heapq

from uellm.sidecar.scheduling.halving import HalvingScale

OUTPUT_COST = 2.0
HALF_LIFE_S = 60.0

LEAST_WEIGHT = 0.5
"""Least weight, of a tenant far above the mean. It gives way first, but not in every case."""

MOST_KNOWN = 4096


class Fairness:
    """Counters of tenants, stored multiplied by a scale that doubles every half-life: so none needs a decay step."""

    def __init__(self) -> None:
        self._counters: dict[str, float] = {}
        self._left_s: dict[str, float] = {}
        self._active: dict[str, int] = {}
        self._least: list[tuple[float, str]] = []
        """A heap with an entry of each active tenant, and older ones, which are invalid."""
        self._sum = 0.0
        self._scale = HalvingScale(HALF_LIFE_S, 0.0)

    def arrived(self, tenant: str, now_s: float) -> None:
        """A request of the tenant arrived. O(log n), amortised."""
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
        self._active[tenant] = self._active.get(tenant, 0) + 1

    def left(self, tenant: str, now_s: float) -> None:
        """A request of the tenant ended. O(1), amortised."""
        self._active[tenant] -= 1
        if not self._active[tenant]:
            del self._active[tenant]
            self._left_s[tenant] = now_s
            self._sum = self._sum - self._counters[tenant] if self._active else 0.0
            if len(self._least) > 64 + 2 * len(self._active):
                self._renew_least()

    def charge(self, tenant: str, prompt_tokens: float, output_tokens: float, now_s: float) -> None:
        """Charge an active tenant for engine work. Negative tokens give a charge back."""
        scale, share = self._scale.at(now_s)
        if share != 1.0:
            self._rebase(share)
        cost = (prompt_tokens + OUTPUT_COST * output_tokens) * scale
        # A charge that is given back weighs more than when it was made. Keep the counter at 0 or above.
        before = self._counters[tenant]
        counter = before + cost
        if counter < 0.0:
            counter = 0.0
        self._sum += counter - before
        self._counters[tenant] = counter

    def weight(self, tenant: str) -> float:
        """Weight of the tenant's requests: 1 up to the mean of the active tenants, less above it."""
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

    def _rebase(self, share: float) -> None:
        self._counters = {tenant: counter * share for tenant, counter in self._counters.items()}
        self._renew_least()
        self._sum = sum(self._counters[tenant] for tenant in self._active)

    def _renew_least(self) -> None:
        self._least = [(self._counters[tenant], tenant) for tenant in self._active]
        heapq.heapify(self._least)
