"""What is asked about a service's model, and what the answer depends on. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from uellm.api import LLMService
from uellm.reconcile.drift import digest
from uellm.reconcile.model_source import MODEL_MOUNT, claim_name, model_path, model_revision
from uellm.reconcile.obstacle import Obstacle

Entry = dict[str, Any]

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
VARIABLES = frozenset(
    {"HF_ENDPOINT", "HF_TOKEN", *_PROXIES, *(name.lower() for name in _PROXIES), *_CERTIFICATES},
)
"""Those of the engine's environment that a look-up depends on."""
_CLAIM_VOLUME = "model"


@dataclass(frozen=True)
class Question:
    """A look-up that a pod can carry out."""

    arguments: tuple[str, ...]
    """Of `uellm inspect`."""
    environment: tuple[Entry, ...] = ()
    volumes: tuple[Entry, ...] = ()
    mounts: tuple[Entry, ...] = ()
    on_volume: bool = False
    """The model is on a volume: the pod goes where the engine's pods go, as the user that they are."""

    @property
    def source(self) -> str:
        """Digest of all that the answer depends on."""
        return digest([self.arguments, self.environment, self.volumes, self.mounts])


def question_of(service: LLMService) -> Question | Obstacle | None:
    """The question; None where the spec has the answer; an obstacle where no pod could answer."""
    model = service.spec.model
    if model.config is not None:
        return None
    if model.uri.startswith("hf://"):
        volumes, mounts = _mounted(service, _certificate_paths(service))
        return Question((f"{model.uri}@{model_revision(service)}",), _environment(service), volumes, mounts)
    path = model_path(service)
    if claim := claim_name(service):
        volume = {"name": _CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        mount = {"name": _CLAIM_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True}
        return _of_directory(service, path, [volume], [mount])
    volumes, mounts = _mounted(service, [path])
    if not mounts:
        return Obstacle(
            "NotOnVolume",
            f"{model.uri} is on no volume that spec.template mounts into the engine's container, so it cannot be read "
            "before the engine starts: put the model's config.json into spec.model.config",
        )
    return _of_directory(service, path, volumes, mounts)


def _of_directory(service: LLMService, path: str, volumes: Iterable[Entry], mounts: Iterable[Entry]) -> Question:
    mounts = tuple(mounts)
    arguments = (path, f"--volume={mounts[0]['mountPath']}", f"--called={service.spec.model.uri}")
    return Question(arguments, (), tuple(volumes), mounts, on_volume=True)


def _environment(service: LLMService) -> tuple[Entry, ...]:
    """The variables that matter, as the engine's container has them: the template's win over `spec.engine.env`."""
    found: dict[str, Entry] = {}
    if token := service.spec.model.token_secret_ref:
        found["HF_TOKEN"] = {"valueFrom": {"secretKeyRef": {"name": token.name, "key": token.key}}}
    found |= {each.name: {"value": each.value} for each in service.spec.engine.env}
    for each in entries(_engine(service), "env"):
        found[str(each.get("name"))] = {name: each[name] for name in ("value", "valueFrom") if name in each}
    return tuple({"name": name, **entry} for name, entry in sorted(found.items()) if name in VARIABLES)


def _certificate_paths(service: LLMService) -> list[str]:
    return [str(each["value"]) for each in _environment(service) if each["name"] in _CERTIFICATES and each.get("value")]


def _mounted(service: LLMService, paths: Iterable[str]) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Of the template's volumes those that hold these paths in the engine's container, read-only."""
    volumes = {each.get("name"): each for each in entries(service.spec.template.spec or {}, "volumes")}
    mounts: dict[str, Entry] = {}
    for path in paths:
        mounted = entries(_engine(service), "volumeMounts")
        holding = [each for each in mounted if _holds(each, path) and each.get("name") in volumes]
        if holding:
            innermost = max(holding, key=lambda each: len(each["mountPath"]))
            mounts[innermost["mountPath"]] = {**innermost, "readOnly": True}
    kept = {each["name"]: dict(volumes[each["name"]]) for each in mounts.values()}
    return tuple(kept.values()), tuple(mounts.values())


def _holds(mount: Mapping[str, Any], path: str) -> bool:
    place = mount.get("mountPath")
    return isinstance(place, str) and place.startswith("/") and PurePosixPath(path).is_relative_to(place)


def _engine(service: LLMService) -> Mapping[str, Any]:
    containers = entries(service.spec.template.spec or {}, "containers")
    return next((each for each in containers if each.get("name") == "engine"), {})


def entries(owner: Mapping[str, Any], field: str) -> list[Entry]:
    """A list of the user's pod template. What is malformed is left to the API server, which names the field."""
    entries = owner.get(field)
    return [dict(each) for each in entries if isinstance(each, Mapping)] if isinstance(entries, list) else []
