"""Class, targets and tenant of a request, from its headers.

llm-d's header names are accepted, and the older ones that it took over: `x-gateway-inference-...`, `x-slo-...`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from hashlib import blake2b

from uellm.http import Headers
from uellm.proxying.keys import KEYS, key_of
from uellm.proxying.outcome import Refusal, RequestOutcome
from uellm.proxying.routes import OBJECTIVES, SLO_CLASS, HeaderLookup
from uellm.proxying.targets import TPOT_MS, TTFT_MS, target_s
from uellm.sidecar.scheduling import Targets

FAIRNESS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")

SCHEDULING = (SLO_CLASS, *OBJECTIVES, *TTFT_MS, *TPOT_MS, *FAIRNESS)
"""All of them. They end at the sidecar."""

_KEYS = frozenset(name.encode() for name in SCHEDULING)

_TENANTS = KEYS.union([name.encode() for name in FAIRNESS])

MAX_TENANT = 128


def targets_of(headers: HeaderLookup, classes: Mapping[str, Targets]) -> Targets:
    """The targets of a request, by its class in `classes`; the first class is the default. Raises Refusal.

    `x-slo-class` names the class, or an inference objective with the name of a class. Targets in milliseconds replace
    those of the class. Without a named class they are the request's only targets, while priority, what happens when it
    is late, and its name in metrics are those of the default class.
    """
    if isinstance(headers, Headers) and not headers.has_any(_KEYS):
        return next(iter(classes.values()))  # most requests have none of them
    named = _class_of(headers, classes)
    chosen = named or next(iter(classes.values()))
    ttft_s, tpot_s = target_s(headers, TTFT_MS), target_s(headers, TPOT_MS)
    if ttft_s is None and tpot_s is None:
        return chosen
    if named is None:
        return replace(chosen, ttft_s=ttft_s, tpot_s=tpot_s, e2e_s=None)
    return replace(chosen, ttft_s=ttft_s or chosen.ttft_s, tpot_s=tpot_s or chosen.tpot_s)


def _class_of(headers: HeaderLookup, classes: Mapping[str, Targets]) -> Targets | None:
    name = headers.get(SLO_CLASS)
    if name is None:
        return classes.get(_first(headers, OBJECTIVES) or "")
    if name not in classes:
        known = ", ".join(classes)
        raise Refusal(RequestOutcome.BAD_REQUEST, f"{SLO_CLASS} names no class of this service; it has: {known}")
    return classes[name]


def sender_of(headers: HeaderLookup) -> str:
    """The tenant by all headers of a request."""
    if isinstance(headers, Headers) and not headers.has_any(_TENANTS):
        return ""
    return tenant_of(headers, key_of(headers))


def tenant_of(headers: HeaderLookup, key: str | None) -> str:
    """The tenant: a fairness id, else a hash of the API key, else the empty string."""
    if given := _first(headers, FAIRNESS):
        return given if len(given) <= MAX_TENANT else _hash(given)
    return _hash(key) if key else ""


def _first(headers: HeaderLookup, names: tuple[str, ...]) -> str | None:
    for name in names:
        if value := headers.get(name):
            return value
    return None


def _hash(text: str) -> str:
    return "key-" + blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()
