"""What a pod needs to ask a hub as the engine would: its variables, its token, its certificates. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from uellm.api import LLMService

Entry = dict[str, Any]

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
VARIABLES = frozenset(
    {"HF_ENDPOINT", "HF_TOKEN", *_PROXIES, *(name.lower() for name in _PROXIES), *_CERTIFICATES},
)
"""Those of the engine's environment that a request to a hub depends on."""


def hub_environment(service: LLMService) -> tuple[Entry, ...]:
    """The variables that matter, as the engine's container has them: the template's win over `spec.engine.env`."""
    found: dict[str, Entry] = {}
    if token := service.spec.model.token_secret_ref:
        found["HF_TOKEN"] = {"valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}}
    found |= {each.name: {"value": each.value} for each in service.spec.engine.env}
    for each in _named(_engine(service), "env"):
        found[each["name"]] = {name: each[name] for name in ("value", "valueFrom") if name in each}
    return tuple({"name": name, **entry} for name, entry in sorted(found.items()) if name in VARIABLES)


def certificates(service: LLMService) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The volumes and mounts that hold the certificates which the variables name."""
    named = [each for each in hub_environment(service) if each["name"] in _CERTIFICATES]
    return mounted(service, [str(each["value"]) for each in named if each.get("value")])


def mounted(service: LLMService, paths: Iterable[str]) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Of the template's volumes those that hold these paths in the engine's container, read-only."""
    volumes = {each["name"]: each for each in _named(service.spec.template.spec or {}, "volumes")}
    mounts: dict[str, Entry] = {}
    for path in paths:
        held = _named(_engine(service), "volumeMounts")
        holding = [each for each in held if _holds(each, path) and each["name"] in volumes]
        if holding:
            innermost = max(holding, key=lambda each: len(each["mountPath"]))
            mounts[innermost["mountPath"]] = {**innermost, "readOnly": True}
    kept = {each["name"]: dict(volumes[each["name"]]) for each in mounts.values()}
    return tuple(kept.values()), tuple(mounts.values())


def entries(owner: Mapping[str, Any], field: str) -> list[Entry]:
    """A list of the user's pod template. What is malformed is left to the API server, which names the field."""
    entries = owner.get(field)
    return [dict(each) for each in entries if isinstance(each, Mapping)] if isinstance(entries, list) else []


def _named(owner: Mapping[str, Any], field: str) -> list[Entry]:
    """Those of them that have a name: another one cannot be referred to."""
    return [each for each in entries(owner, field) if isinstance(each.get("name"), str)]


def _holds(mount: Mapping[str, Any], path: str) -> bool:
    place = mount.get("mountPath")
    return isinstance(place, str) and place.startswith("/") and PurePosixPath(path).is_relative_to(place)


def _engine(service: LLMService) -> Mapping[str, Any]:
    containers = entries(service.spec.template.spec or {}, "containers")
    return next((each for each in containers if each.get("name") == "engine"), {})
