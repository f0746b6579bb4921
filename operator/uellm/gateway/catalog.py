"""Which service a model's name belongs to. Pure.

A service has the names that its engine answers to: its served name and those of its adapters. Each can be asked for as
it is, or as `namespace/name`. The second form takes precedence, so nobody can take over a name of another namespace by
a served name with a slash in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.proxying.routes import OBJECTIVES, SLO_CLASS, HeaderLookup

MOST_NAMES = 32
"""Names in one message."""
_LONGEST_NAME = 160


@dataclass(frozen=True, slots=True, order=True)
class ServiceKey:
    """A service's namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class TargetClass:
    """An SLO class of a service. None: no such target."""

    name: str
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    rejects_late: bool = False

    @property
    def deadline_s(self) -> float | None:
        """When a request has failed and is refused, in seconds after its arrival; None: it may be late."""
        targets_s = [target_s for target_s in (self.ttft_s, self.e2e_s) if target_s is not None]
        return min(targets_s, default=None) if self.rejects_late else None


@dataclass(frozen=True, slots=True)
class Service:
    """What the gateway knows of an LLMService."""

    key: ServiceKey
    names: tuple[str, ...]
    """The names that the engine answers to: first the served name, then those of adapters."""
    uid: str = ""
    created_s: int = 0
    """Unix time."""
    suspended: bool = False
    wakes: bool = False
    """It gets a replica when the gateway asks for one."""
    replicas: int = 1
    """How many it wants."""
    startup_s: float | None = None
    """Measured time that a replica takes to start."""
    classes: tuple[TargetClass, ...] = ()
    """The first one is the default."""
    keys_secret: str | None = None
    """Name of the Secret with its API keys."""

    @property
    def starts(self) -> bool:
        """Whether it gets a replica, by itself or when it is asked for one."""
        return not self.suspended and (self.wakes or self.replicas > 0)

    def class_of(self, headers: HeaderLookup) -> TargetClass | None:
        """The class that a request names, or else the default; None: the service has no classes."""
        named = headers.get(SLO_CLASS) or next((name for name in map(headers.get, OBJECTIVES) if name), None)
        first = self.classes[0] if self.classes else None
        return next((each for each in self.classes if each.name == named), first)


@dataclass(frozen=True, slots=True)
class Match:
    """The service that a request goes to, and the name that its engine knows."""

    service: Service
    name: str


@dataclass(slots=True)
class Catalog:
    """All services by every name."""

    services: dict[ServiceKey, Service] = field(default_factory=dict)
    _by_name: dict[str, list[Match]] = field(default_factory=dict)
    _by_full_name: dict[str, list[Match]] = field(default_factory=dict)
    _stale: bool = False
    """The names are to be found anew. Many services change at once, so that is done when a name is asked for."""

    def put(self, service: Service) -> None:
        """Add or replace a service."""
        if self.services.get(service.key) != service:
            self.services[service.key] = service
            self._stale = True

    def drop(self, key: ServiceKey) -> None:
        """Remove a service."""
        if self.services.pop(key, None) is not None:
            self._stale = True

    def find(self, asked: str) -> Match:
        """The one service of that name. Raises Refusal: there is none, or there are several."""
        self._index()
        found = self._by_full_name.get(asked) or self._by_name.get(asked) or []
        if len(found) == 1:
            return found[0]
        raise _ambiguous(asked, found) if found else self._unknown(asked)

    def listed(self) -> list[dict[str, Any]]:
        """OpenAI's model objects of every name. A name that several namespaces have is listed with its namespace."""
        self._index()
        listed: dict[str, dict[str, Any]] = {}
        for name, matches in sorted(self._by_name.items()):
            for match in matches:
                shown = (
                    name
                    if len(matches) == 1 and name not in self._by_full_name
                    else f"{match.service.key.namespace}/{name}"
                )
                listed.setdefault(shown, model_object(shown, match))
        return list(listed.values())

    def _unknown(self, asked: str) -> Refusal:
        message = f"The model `{asked[:_LONGEST_NAME]}` does not exist. {_names(m['id'] for m in self.listed())}"
        return Refusal(RequestOutcome.MODEL_NOT_FOUND, message)

    def _index(self) -> None:
        if not self._stale:
            return
        self._stale = False
        by_name: dict[str, list[Match]] = defaultdict(list)
        by_full_name: dict[str, list[Match]] = defaultdict(list)
        for key in sorted(self.services):
            service = self.services[key]
            for name in dict.fromkeys(service.names):
                match = Match(service, name)
                by_name[name].append(match)
                by_full_name[f"{key.namespace}/{name}"].append(match)
        self._by_name, self._by_full_name = dict(by_name), dict(by_full_name)


def model_object(shown: str, match: Match) -> dict[str, Any]:
    """A model as OpenAI's API shows it."""
    document = {
        "id": shown,
        "object": "model",
        "created": match.service.created_s,
        "owned_by": match.service.key.namespace,
    }
    if match.name != match.service.names[0]:
        document["root"] = match.service.names[0]
    return document


def _names(names: Iterable[str]) -> str:
    every = list(names)
    if not every:
        return "There are no models yet."
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return f"There are: {', '.join(every[:MOST_NAMES])}{more}."


def _ambiguous(asked: str, found: list[Match]) -> Refusal:
    full = dict.fromkeys(f"{match.service.key.namespace}/{match.name}" for match in found)
    shown = asked[:_LONGEST_NAME]
    if len(full) > 1:
        message = f"The model `{shown}` exists in several namespaces; ask for one of: {', '.join(full)}."
    else:
        services = ", ".join(match.service.key.name for match in found)
        message = (
            f"The model `{shown}` is served by several LLMServices of one namespace ({services}); "
            "give them different served names."
        )
    return Refusal(RequestOutcome.MODEL_AMBIGUOUS, message)
