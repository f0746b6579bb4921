"""Which LoRA adapters the sidecars of a service are told of. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any

import yaml
from pydantic import ValidationError

from uellm.api import LLMService
from uellm.api.adapter import AdapterSpec
from uellm.api.sidecar_document import SidecarAdapter, SidecarRevisionAdapters, ToldAdapters
from uellm.hub import ModelFacts
from uellm.hub.copy_state import copy_path
from uellm.reconcile.adapter_claims import HF, adapter_path, source_of
from uellm.reconcile.model_claim import MODEL_MOUNT, cache_claim


def are_known(service: LLMService, facts: ModelFacts | None) -> bool:
    """Whether the facts are of the service's adapters."""
    known = {(each.name, each.source) for each in facts.adapters} if facts is not None else set()
    return known >= {(each.name, source_of(each)) for each in service.spec.model.adapters}


def entries(service: LLMService, facts: ModelFacts | None) -> tuple[SidecarAdapter, ...]:
    """What the sidecars are told of adapters that are known."""
    commits = {(each.name, each.source): each.commit for each in facts.adapters} if facts is not None else {}
    copies = {name: f"{MODEL_MOUNT}/{copy_path(*copy)}" for name, copy in copied_adapters(service, facts).items()}
    return tuple(
        SidecarAdapter(name=each.name, source=source_of(each), path=copies[each.name])
        if each.name in copies
        else _entry(service, each, commits.get((each.name, source_of(each)), ""))
        for each in service.spec.model.adapters
    )


def copied_adapters(service: LLMService, facts: ModelFacts | None) -> dict[str, tuple[str, str]]:
    """Repository and commit of adapters of the hub that are copied to the model's claim, by name.

    They come and go while pods run, so on nodes the engines download them. `facts`: of the adapters, where they were
    looked up.
    """
    if cache_claim(service) is None:
        return {}
    commits = {(each.name, each.source): each.commit for each in facts.adapters} if facts is not None else {}
    return {
        each.name: (each.uri.removeprefix(HF), commits.get((each.name, source_of(each))) or each.revision)
        for each in service.spec.model.adapters
        if each.uri.startswith(HF)
    }


def _entry(service: LLMService, adapter: AdapterSpec, commit: str) -> SidecarAdapter:
    source = source_of(adapter)
    if path := adapter_path(service, adapter):
        return SidecarAdapter(name=adapter.name, source=source, path=path)
    repository = adapter.uri.removeprefix(HF)
    return SidecarAdapter(name=adapter.name, source=source, repository=repository, commit=commit or adapter.revision)


def still_wanted(service: LLMService, told: ToldAdapters) -> ToldAdapters:
    """Of what the sidecars were told, the adapters whose names the service still has.

    One whose source was changed is served from the former one until the new one is known and there.
    """
    wanted = {each.name for each in service.spec.model.adapters}

    def kept(adapters: tuple[SidecarAdapter, ...]) -> tuple[SidecarAdapter, ...]:
        return tuple(each for each in adapters if each.name in wanted)

    of_revisions = (
        SidecarRevisionAdapters(revision=each.revision, adapters=kept(each.adapters)) for each in told.of_revisions
    )
    return ToldAdapters(kept(told.adapters), tuple(of_revisions))


def handed_over(
    told: ToldAdapters, wanted: tuple[SidecarAdapter, ...], revision: str, others: Collection[str]
) -> ToldAdapters:
    """What to tell while pods of the revisions `others` are replaced by those of `revision`; none: all are.

    An adapter is of one base model, and needs the room that its pods have: each pod goes on with those that it has, and
    pods of the new revision start with those that are `wanted`.
    """
    if not others:
        return ToldAdapters(wanted)
    former = tuple(each for each in told.of_revisions if each.revision in others)
    if wanted == told.adapters:
        return ToldAdapters(wanted, former)
    return ToldAdapters(told.adapters, (*former, SidecarRevisionAdapters(revision=revision, adapters=wanted)))


def are_told(service: LLMService, told: ToldAdapters) -> bool:
    """Whether sidecars, those of the last revision at least, are told of exactly the service's adapters."""
    wanted = {(each.name, source_of(each)) for each in service.spec.model.adapters}
    lists = (told.adapters, *(each.adapters for each in told.of_revisions))
    return any(wanted == {(each.name, each.source) for each in adapters} for adapters in lists)


def read_told(configmap: Mapping[str, Any] | None, file: str) -> ToldAdapters:
    """The adapters in a `sidecar.yaml`; none where it cannot be read."""
    return _read(((configmap or {}).get("data") or {}).get(file) or "")


# Every pass asks, and reading YAML takes milliseconds.
@lru_cache(maxsize=1024)
def _read(text: str) -> ToldAdapters:
    if "dapters" not in text:
        return ToldAdapters()
    try:
        document = yaml.safe_load(text)
        return ToldAdapters(
            tuple(map(SidecarAdapter.model_validate, document.get("adapters") or ())),
            tuple(map(SidecarRevisionAdapters.model_validate, document.get("revisionAdapters") or ())),
        )
    except (yaml.YAMLError, ValidationError, AttributeError, TypeError):
        return ToldAdapters()
