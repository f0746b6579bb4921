"""What is asked about a service's model, and what the answer depends on. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from uellm.api import LLMService
from uellm.reconcile.drift import digest
from uellm.reconcile.helper_pods.hub_access import Entry, certificates, hub_environment, mounted
from uellm.reconcile.model_claim import MODEL_MOUNT, claim_name
from uellm.reconcile.model_source import model_path, model_revision
from uellm.reconcile.obstacle import Obstacle

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
        volumes, mounts = certificates(service)
        return Question((f"{model.uri}@{model_revision(service)}",), hub_environment(service), volumes, mounts)
    path = model_path(service)
    if claim := claim_name(service):
        volume = {"name": _CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        mount = {"name": _CLAIM_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True}
        return _of_directory(service, path, [volume], [mount])
    volumes, mounts = mounted(service, [path])
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
