"""What is asked about a service's model, and what the answer depends on. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from uellm.api import LLMService
from uellm.api.adapter import AdapterSpec
from uellm.hub import ModelFacts
from uellm.reconcile.adapter_claims import adapter_claims, adapter_path, claim_of, source_of
from uellm.reconcile.draft import DraftSource, draft_source
from uellm.reconcile.drift import digest
from uellm.reconcile.helper_pods.hub_access import Entry, certificates, hub_environment, mounted
from uellm.reconcile.model_claim import MODEL_MOUNT, claim_name, image_of, image_volume
from uellm.reconcile.model_source import is_in_bucket, model_path, model_revision
from uellm.reconcile.obstacle import Obstacle

_MODEL_VOLUME = "model"
_OTHERS_ALONE = "--only-adapters"
_DRAFT = "--draft="


class KnownCommits(NamedTuple):
    """The commits that a model and its draft were looked up at before."""

    model: str = ""
    draft_source: str = ""
    draft: str = ""


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

    @property
    def model(self) -> str:
        """Digest of which model is asked about, at which hub."""
        endpoint = [each for each in self.environment if each["name"] == "HF_ENDPOINT"]
        return digest([self.arguments[0], endpoint])

    def at(self, known: KnownCommits) -> Question:
        """The same at commits that are known: what a branch is now is asked only where another revision is named."""
        first, *others = self.arguments
        if known.model and first.startswith("hf://") and "@" in first:
            first = f"{first.partition('@')[0]}@{known.model}"
        if known.draft and (place := _DRAFT + known.draft_source) in others:
            others[others.index(place)] = f"{place.partition('@')[0]}@{known.draft}"
        return replace(self, arguments=(first, *others))

    def answered(self, facts: ModelFacts) -> ModelFacts:
        """The answer, with the draft's source as the question has it; it may have been asked at a commit."""
        draft = facts.draft
        asked = (each.removeprefix(_DRAFT) for each in self.arguments if each.startswith(f"{_DRAFT}hf://"))
        if draft is None or (source := next(asked, draft.source)).partition("@")[0] != draft.source.partition("@")[0]:
            return facts
        return replace(facts, draft=draft._replace(source=source))


def question_of(service: LLMService) -> Question | Obstacle | None:
    """The question; None where the spec has the answer; an obstacle where no pod could answer."""
    found = _of_model(service)
    if service.spec.model.adapters:
        found = _with_adapters(service, found)
    draft = draft_source(service)
    return found if draft is None else _with_draft(service, found, draft)


def _of_model(service: LLMService) -> Question | Obstacle | None:
    model = service.spec.model
    if model.config is not None:
        return None
    if model.uri.startswith("hf://"):
        volumes, mounts = certificates(service)
        return Question((f"{model.uri}@{model_revision(service)}",), hub_environment(service), volumes, mounts)
    if is_in_bucket(service):
        return Obstacle(
            "NotReadable",
            f"{model.uri} is in an object store, which the engine alone reads: put the model's config.json into "
            "spec.model.config",
        )
    path = model_path(service)
    if image := image_of(service):
        mount = {"name": _MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True}
        return _of_directory(service, path, [image_volume(_MODEL_VOLUME, image)], [mount])
    if claim := claim_name(service):
        volume = {"name": _MODEL_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
        mount = {"name": _MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True}
        return _of_directory(service, path, [volume], [mount])
    volumes, mounts = mounted(service, [path])
    if not mounts:
        return Obstacle(
            "NotOnVolume",
            f"{model.uri} is on no volume that spec.template mounts into the engine's container, so it cannot be read "
            "before the engine starts: put the model's config.json into spec.model.config",
        )
    return _of_directory(service, path, volumes, mounts)


def _with_adapters(service: LLMService, of_model: Question | Obstacle | None) -> Question | Obstacle:
    """The question about the model, and about its adapters. A model that is known already is not asked about."""
    if isinstance(of_model, Obstacle):
        return of_model
    base = of_model or Question((service.spec.model.uri, _OTHERS_ALONE))
    arguments, environment = list(base.arguments), base.environment
    volumes = {each["name"]: each for each in base.volumes}
    mounts = {each["mountPath"]: each for each in base.mounts}
    on_volume = base.on_volume
    for adapter in service.spec.model.adapters:
        if not (path := adapter_path(service, adapter)):
            arguments.append(f"--adapter={adapter.name}={source_of(adapter)}")
            environment = hub_environment(service)
            own_volumes, own_mounts = certificates(service)
        else:
            own_volumes, own_mounts = _holding(service, adapter, path)
            if not own_mounts:
                return Obstacle(
                    "NotOnVolume",
                    f"adapter {adapter.name}: {adapter.uri} is on no volume that spec.template mounts into the "
                    "engine's container, so it cannot be read before the engine loads it: put it on a volume",
                )
            arguments.append(f"--adapter={adapter.name}={path},{own_mounts[0]['mountPath']},{adapter.uri}")
            on_volume = True
        volumes |= {each["name"]: each for each in own_volumes}
        mounts |= {each["mountPath"]: each for each in own_mounts}
    return Question(tuple(arguments), environment, tuple(volumes.values()), tuple(mounts.values()), on_volume)


def _with_draft(service: LLMService, found: Question | Obstacle | None, draft: DraftSource) -> Question | Obstacle:
    """The question about the draft as well."""
    if isinstance(found, Obstacle):
        return found
    base = found or Question((service.spec.model.uri, _OTHERS_ALONE))
    if not draft.path:
        volumes, mounts = certificates(service)
        argument, environment, on_volume = f"{_DRAFT}{draft.source}", hub_environment(service), base.on_volume
    else:
        volumes, mounts = _holding_draft(service, draft.path)
        if not mounts:
            return Obstacle(
                "NotOnVolume",
                f"draft model: {draft.path} is on no volume that spec.template mounts into the engine's container, so "
                "it cannot be read before the engine starts: put it on a volume, or name it by its repository",
            )
        argument, environment, on_volume = f"{_DRAFT}{draft.path},{mounts[0]['mountPath']}", base.environment, True
    all_volumes = {each["name"]: each for each in (*base.volumes, *volumes)}
    all_mounts = {each["mountPath"]: each for each in (*base.mounts, *mounts)}
    kept = tuple(all_volumes.values()), tuple(all_mounts.values())
    return Question((*base.arguments, argument), environment, *kept, on_volume)


def _holding_draft(service: LLMService, path: str) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The volume that holds a draft's directory, and its mount: the model's own claim or one of the template's."""
    claim = claim_name(service)
    if claim is None or not path.startswith(f"{MODEL_MOUNT}/"):
        return mounted(service, [path])
    volume = {"name": _MODEL_VOLUME, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return (volume,), ({"name": _MODEL_VOLUME, "mountPath": MODEL_MOUNT, "readOnly": True},)


def _holding(service: LLMService, adapter: AdapterSpec, path: str) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """The volume that holds an adapter's directory, and its mount."""
    claim = claim_of(adapter)
    if claim is None:
        return mounted(service, [path])
    place = adapter_claims(service).get(claim, MODEL_MOUNT)
    name = _MODEL_VOLUME if place == MODEL_MOUNT else f"adapters-{list(adapter_claims(service)).index(claim)}"
    volume = {"name": name, "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    return (volume,), ({"name": name, "mountPath": place, "readOnly": True},)


def _of_directory(service: LLMService, path: str, volumes: Iterable[Entry], mounts: Iterable[Entry]) -> Question:
    mounts = tuple(mounts)
    arguments = (path, f"--volume={mounts[0]['mountPath']}", f"--called={service.spec.model.uri}")
    return Question(arguments, (), tuple(volumes), mounts, on_volume=True)
