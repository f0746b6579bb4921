"""What the gateway's watches have heard of the API server, by namespace. Pure.

A namespace that was deleted, or whose services the gateway may not read, is refused; without the CRDs each one is.
The others go on without it, as long as there is one: where nothing at all can be read, the gateway itself is set up
wrongly, and must not look well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from uellm.kube import Kind

Namespaces = Sequence[str | None]
"""Those that are watched; None: all in one."""


LOST_S = 300.0
"""After so long a refusal counts as the end of a namespace: what is known of its services is no longer true."""


class Contact:
    """Which watches have answered, which are refused, and when they were heard of last."""

    def __init__(
        self, kinds: Iterable[Kind], namespaces: Namespaces, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._kinds = tuple(kinds)
        self._namespaces = namespaces
        self._clock = clock
        self.complete = False
        """Whether every namespace was read once or is refused, and one at least was read. It stays so."""
        self._heard_s: dict[tuple[Kind, str | None], float] = {}
        self._synced: set[tuple[Kind, str | None]] = set()
        self._answered: set[tuple[Kind, str | None]] = set()
        """Those that have read everything, or were refused, at least once."""
        self._refused_s: dict[tuple[Kind, str | None], float] = {}
        """Those whose last answer was a refusal: since when."""
        self._readable_s: dict[str | None, float] = {}
        """Namespaces that are heard of and not refused: since when."""

    def heard(self, kind: Kind, namespace: str | None) -> bool:
        """A watch has received something. Whether that is news: its namespace was refused until now."""
        self._heard_s[kind, namespace] = self._clock()
        was_refused = self._refused_s.pop((kind, namespace), None) is not None
        if namespace in self._readable_s or namespace in self.refused:
            return False
        self._readable_s[namespace] = self._heard_s[kind, namespace]
        return was_refused

    def synced(self, kind: Kind, namespace: str | None) -> None:
        """A watch has read everything."""
        self._synced.add((kind, namespace))
        self._answer(kind, namespace)

    def refuse(self, kind: Kind, namespace: str | None) -> bool:
        """A watch was refused. Whether that is news: its namespace was not refused before."""
        news = namespace not in self.refused
        self._refused_s.setdefault((kind, namespace), self._clock())
        self._readable_s.pop(namespace, None)
        self._answer(kind, namespace)
        return news

    def lost(self, kind: Kind, namespace: str | None) -> bool:
        """Whether a watch has been refused for long, and others were not: its namespace is not there any more.

        The time in which nothing at all could be read says nothing of one namespace: rights come back one by one.
        """
        refused_s = self._refused_s.get((kind, namespace))
        if refused_s is None or not self._readable_s:
            return False
        return self._clock() - max(refused_s, min(self._readable_s.values())) >= LOST_S

    @property
    def refused(self) -> set[str | None]:
        """Namespaces that cannot be read."""
        return {namespace for _, namespace in self._refused_s}

    def age_s(self) -> float:
        """Seconds since the API server was heard of; infinite before the first time.

        Refused namespaces do not count, unless all of them are.
        """
        refused = self.refused
        counted_s = [heard_s for (_, namespace), heard_s in self._heard_s.items() if namespace not in refused]
        return self._clock() - min(counted_s or self._heard_s.values(), default=float("-inf"))

    def _answer(self, kind: Kind, namespace: str | None) -> None:
        self._answered.add((kind, namespace))
        read = (all((kind, namespace) in self._synced for kind in self._kinds) for namespace in self._namespaces)
        self.complete = len(self._answered) == len(self._kinds) * len(set(self._namespaces)) and any(read)
