"""Which service a model's name belongs to. Pure.

A service has the names that its engines answer to: its served name and those of its adapters. Each can be asked for as
it is, or as `namespace/name`. The second form takes precedence, so nobody can take over a name of another namespace by
a served name with a slash in it.

What the replicas tell is what can be answered: after an edit of the names the old ones work as long as a replica serves
them, and the new ones as soon as one does. A name that a spec has, however, is never taken over by what replicas of
another namespace tell.

Where several services of one namespace have a name, those with replicas come before those that have yet to start one,
and these before those that cannot. Of those that are left the oldest has the name. Namespaces do not trust each other:
none has a name that several have, and the request has to say which one it means, for its prompt and its key must not
move to another namespace while a replica restarts. Only services that neither serve nor can start are left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from uellm.proxying.outcome import RETRY_ENGINE_S, Refusal, RequestOutcome, spread_s
from uellm.proxying.routes import OBJECTIVES, SLO_CLASS, HeaderLookup
from uellm.proxying.targets import TPOT_MS, TTFT_MS, target_s

MOST_NAMES = 32
"""Names in one message."""
_LONGEST_NAME = 160

Told = frozenset[tuple[str, ...]]
"""The names that replicas tell: of each first the model's, then those of adapters. Empty: of one that tells none."""


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
    """The names in its spec: first the served name, then those of adapters."""
    fixed_names: bool = False
    """All its replicas serve these names, whatever they tell."""
    uid: str = ""
    created_s: int = 0
    """Unix time."""
    suspended: bool = False
    deleting: bool = False
    """It is being deleted, which may take as long as its pods do, and gets no replica any more."""
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
        return not self.suspended and not self.deleting and (self.wakes or self.replicas > 0)

    def class_of(self, headers: HeaderLookup) -> TargetClass | None:
        """The class that a request names, or else the default; targets of its own replace those of the class.

        They do as in the sidecar. None: the service has no classes, and the request no targets.
        """
        asked = headers.get(SLO_CLASS) or next((name for name in map(headers.get, OBJECTIVES) if name), None)
        named = next((each for each in self.classes if each.name == asked), None)
        chosen = named or (self.classes[0] if self.classes else None)
        ttft_s, tpot_s = _own_target_s(headers, TTFT_MS), _own_target_s(headers, TPOT_MS)
        if ttft_s is None and tpot_s is None:
            return chosen
        if named is not None:
            return replace(named, ttft_s=ttft_s or named.ttft_s, tpot_s=tpot_s or named.tpot_s)
        return replace(chosen or TargetClass(""), ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=None)


def _own_target_s(headers: HeaderLookup, names: tuple[str, ...]) -> float | None:
    """A target that no sidecar would take counts as none; the sidecar refuses the request."""
    try:
        return target_s(headers, names)
    except Refusal:
        return None


@dataclass(frozen=True, slots=True)
class Match:
    """The service that a request goes to, and the name that its engine knows."""

    service: Service
    name: str
    root: str
    """The model's own name, where this is that of an adapter."""
    adapter: str = ""
    """The same name where it is that of an adapter; else empty."""
    declared: bool = True
    """The spec has the name."""
    pending: bool = False
    """There are replicas, and none of them serves it yet."""
    answered: bool = True
    """A replica serves it, or will once there is one."""
    served: bool = True
    """A replica serves it now."""

    @property
    def possible(self) -> bool:
        """Whether a replica serves it now, or one can be started that will."""
        return self.served or self.service.starts


@dataclass(slots=True)
class Catalog:
    """All services by every name."""

    services: dict[ServiceKey, Service] = field(default_factory=dict)
    _told: dict[ServiceKey, Told] = field(default_factory=dict)
    _owners: dict[str, list[Match]] = field(default_factory=dict)
    """By name: of each namespace the service that has it there."""
    _by_name: dict[str, list[Match]] = field(default_factory=dict)
    """Those of them between which only a request can choose; mostly one."""
    _by_full_name: dict[str, Match] = field(default_factory=dict)
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

    def tell(self, key: ServiceKey, told: Told) -> None:
        """What the replicas of a service tell of their names; empty: there are no replicas."""
        if self._told.get(key, frozenset()) != told:
            self._told[key] = told
            self._stale = True
        if not told:
            self._told.pop(key, None)

    def find(self, asked: str) -> Match:
        """The one service of that name. Raises Refusal: there is none, or several, or no replica serves it yet."""
        self._index()
        full = self._by_full_name.get(asked)
        found = [full] if full else self._by_name.get(asked, [])
        if len(found) != 1:
            raise _ambiguous(asked, found) if found else self._unknown(asked)
        if found[0].pending:
            raise not_yet(found[0])
        return found[0]

    def listed(self) -> list[dict[str, Any]]:
        """OpenAI's model objects of every name that can be answered now, or once its service has been started.

        A name is listed with its namespace where the name alone leads to no service, or to another one.
        """
        self._index()
        listed: list[dict[str, Any]] = []
        for name, owners in sorted(self._owners.items()):
            plain = [] if name in self._by_full_name else self._by_name[name]
            for match in owners:
                if match.answered:
                    listed.append(model_object(name if plain == [match] else _full_name(match), match))
        return listed

    def _unknown(self, asked: str) -> Refusal:
        message = f"The model `{asked[:_LONGEST_NAME]}` does not exist. {_names(m['id'] for m in self.listed())}"
        return Refusal(RequestOutcome.MODEL_NOT_FOUND, message)

    def _index(self) -> None:
        if not self._stale:
            return
        self._stale = False
        in_namespace: dict[tuple[str, str], list[Match]] = defaultdict(list)
        for key, service in sorted(self.services.items()):
            told = self._told.get(key, frozenset())
            if service.deleting and not told:
                continue
            for match in _matches(service, told):
                in_namespace[key.namespace, match.name].append(match)
        self._owners, self._by_full_name = defaultdict(list), {}
        for (namespace, name), matches in in_namespace.items():
            owner = self._by_full_name[f"{namespace}/{name}"] = _owner(matches)
            self._owners[name].append(owner)
        self._by_name = {name: _first(owners) for name, owners in self._owners.items()}


def model_object(shown: str, match: Match) -> dict[str, Any]:
    """A model as OpenAI's API shows it."""
    document = {
        "id": shown,
        "object": "model",
        "created": match.service.created_s,
        "owned_by": match.service.key.namespace,
    }
    if match.name != match.root:
        document["root"] = match.root
    return document


def _matches(service: Service, told: Told) -> Iterator[Match]:
    """Every name of a service."""
    spec = service.names
    served: dict[str, str] = {}
    adapters: set[str] = set()
    for names in sorted(told or {()}):
        current = spec if service.fixed_names else names or spec
        for name in current:
            served.setdefault(name, current[0])
        adapters.update(names[1:] if service.fixed_names else current[1:])
    for name in dict.fromkeys((*spec, *served)):
        pending = name not in served
        yield Match(
            service,
            name,
            root=served.get(name, spec[0]),
            adapter=name if name in adapters else "",
            declared=name in spec,
            pending=pending,
            answered=not pending and (bool(told) or service.starts),
            served=not pending and bool(told),
        )


def _full_name(match: Match) -> str:
    return f"{match.service.key.namespace}/{match.name}"


def _owner(matches: list[Match]) -> Match:
    """Who has a name in one namespace: a service whose spec has it.

    Where none of them can answer, one whose replicas still do stands in: two services may exchange their names.
    """
    declared = [match for match in matches if match.declared]
    others = [replace(match, declared=bool(declared)) for match in matches if not match.declared]
    stands_in = others and not any(match.answered for match in declared)
    return min(_able(others if stands_in else declared), key=_seniority)


def _seniority(match: Match) -> tuple[int, ServiceKey]:
    return match.service.created_s, match.service.key


def _first(matches: list[Match]) -> list[Match]:
    """Who may be meant by a name without a namespace: also those that have yet to start a replica."""
    declared = [match for match in matches if match.declared] or matches
    return [match for match in declared if match.possible] or declared


def _able(matches: list[Match]) -> list[Match]:
    """Those of them with replicas that serve the name; else those that can start one; else those that will serve it."""
    served, answered = [match for match in matches if match.served], [match for match in matches if match.answered]
    return served or answered or [match for match in matches if match.possible] or matches


def not_yet(match: Match) -> Refusal:
    """The answer to requests that name what no replica of the service serves yet."""
    service = match.service.key.name
    message = f"no replica of {service} serves `{match.name}` yet; the status of {service} says why; retry later"
    return Refusal(RequestOutcome.ENGINE_UNAVAILABLE, message, retry_after_s=spread_s(RETRY_ENGINE_S))


def _names(names: Iterable[str]) -> str:
    every = list(names)
    if not every:
        return "There are no models yet."
    more = f" and {len(every) - MOST_NAMES} more" if len(every) > MOST_NAMES else ""
    return f"There are: {', '.join(every[:MOST_NAMES])}{more}."


def _ambiguous(asked: str, found: list[Match]) -> Refusal:
    full = ", ".join(map(_full_name, found))
    message = f"The model `{asked[:_LONGEST_NAME]}` exists in several namespaces; ask for one of: {full}."
    return Refusal(RequestOutcome.MODEL_AMBIGUOUS, message)
