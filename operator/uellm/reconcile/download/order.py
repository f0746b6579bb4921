"""What is copied where, and what the copy depends on. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.api import LLMService
from uellm.hub import ModelFacts
from uellm.hub.copy_state import COMPILED, copy_path
from uellm.reconcile.adapters import copied_adapters
from uellm.reconcile.draft import copied_draft
from uellm.reconcile.drift import digest
from uellm.reconcile.helper_pods.hub_access import Entry, certificates, hub_environment
from uellm.reconcile.model_claim import MODEL_MOUNT, cache_claim
from uellm.reconcile.model_source import model_revision, repository

_CLAIM_VOLUME = "model"


@dataclass(frozen=True)
class CopyOrder:
    """A copy that a pod can make."""

    service: str
    """Its name: its engines have a directory of their own for what they compile."""
    repository: str
    commit: str
    claim: str
    claim_uid: str = ""
    """Of a claim that the operator made: a claim of the same name that was made anew is empty."""
    adapters: tuple[tuple[str, str, str], ...] = ()
    """Name, repository and commit of each adapter of the hub."""
    draft: tuple[str, str] | None = None
    """Repository and commit of the model or head of the hub that drafts for speculation."""
    environment: tuple[Entry, ...] = ()
    volumes: tuple[Entry, ...] = ()
    mounts: tuple[Entry, ...] = ()

    @property
    def directory(self) -> str:
        """Where the copy is, below the directory of the volume."""
        return copy_path(self.repository, self.commit)

    @property
    def other_directories(self) -> list[str]:
        """Where the copies of its adapters and of its draft are."""
        others = [each[1:] for each in self.adapters] + ([self.draft] if self.draft else [])
        return [copy_path(repository, commit) for repository, commit in others]

    @property
    def compiled(self) -> str:
        """Where the service's engines may write what they compile, below the directory of the volume."""
        return f"{COMPILED}/{self.service}"

    @property
    def copy_digest(self) -> str:
        """Digest of which copy it is. Neither the token nor the way to the hub is a part of it."""
        adapters = [each[1:] for each in self.adapters]
        others = ([adapters] if adapters else []) + ([{"draft": self.draft}] if self.draft else [])
        return digest([self.repository, self.commit, self.claim, self.claim_uid, *others])

    @property
    def source(self) -> str:
        """Digest of all that the pod's work depends on."""
        return digest([self.copy_digest, self.environment, self.volumes, self.mounts])

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of `uellm fetch`."""
        return (
            f"hf://{self.repository}@{self.commit}",
            MODEL_MOUNT,
            f"--called=claim {self.claim}",
            f"--compiled={self.service}",
            *(f"--adapter={name}=hf://{repository}@{commit}" for name, repository, commit in self.adapters),
            *((f"--draft=hf://{self.draft[0]}@{self.draft[1]}",) if self.draft else ()),
        )


def order_of(service: LLMService, facts: ModelFacts | None, claim_uid: str = "") -> CopyOrder | None:
    """The copy that a service needs; None where it needs none. `facts`: of its model, where it was looked up."""
    claim = cache_claim(service)
    if claim is None:
        return None
    volumes, mounts = certificates(service)
    volume = {"name": _CLAIM_VOLUME, "persistentVolumeClaim": {"claimName": claim}}
    mount = {"name": _CLAIM_VOLUME, "mountPath": MODEL_MOUNT}
    return CopyOrder(
        service.name,
        repository(service),
        model_revision(service, facts),
        claim,
        claim_uid,
        tuple((name, *copy) for name, copy in copied_adapters(service, facts).items()),
        copied_draft(service, facts),
        hub_environment(service),
        (volume, *volumes),
        (mount, *mounts),
    )
