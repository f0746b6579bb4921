"""Looks the LoRA adapters and the draft of an LLMService up for a command, as far as this machine can."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from uellm.api import LLMService
from uellm.api.adapter import AdapterSpec
from uellm.cli.hub import SCHEME, model_facts
from uellm.errors import CannotBeDone
from uellm.hub import DraftFacts, LookUpRefusal, ModelFacts
from uellm.hub.adapter import AdapterFacts
from uellm.hub.directory import read_directory_adapter, read_directory_facts
from uellm.reconcile.draft import draft_source

_FILE = "file://"


def with_draft(service: LLMService, facts: ModelFacts | None) -> ModelFacts | None:
    """`facts` with those of the model or head that drafts for speculation, on the hub or in a directory of this
    machine. Raises CannotBeDone."""
    wanted = draft_source(service)
    if wanted is None:
        return facts
    if wanted.repository:
        found = model_facts(wanted.source)
    elif Path(wanted.path).is_dir():
        answer = read_directory_facts(Path(wanted.path), Path("/"), wanted.path)
        if isinstance(answer, LookUpRefusal):
            raise CannotBeDone(f"draft model: {answer.message}")
        found = answer
    else:
        return facts
    return replace(facts or ModelFacts("", {}, None), draft=DraftFacts(wanted.source, found))


def with_adapters(service: LLMService, facts: ModelFacts | None) -> ModelFacts | None:
    """`facts` with those of the adapters on the hub and in directories of this machine. Raises CannotBeDone.

    An adapter on a claim, or in a directory of a container, cannot be looked up here.
    """
    found = [each for adapter in service.spec.model.adapters if (each := _look_up(adapter)) is not None]
    if not found:
        return facts
    return replace(facts or ModelFacts("", {}, None), adapters=tuple(found))


def _look_up(adapter: AdapterSpec) -> AdapterFacts | None:
    path = adapter.uri.removeprefix(_FILE)
    if adapter.uri.startswith(SCHEME):
        answer = _on_hub(adapter)
    elif adapter.uri.startswith(_FILE) and Path(path).is_dir():
        answer = read_directory_adapter(adapter.name, Path(path), Path("/"), adapter.uri)
    else:
        return None
    if isinstance(answer, LookUpRefusal):
        raise CannotBeDone(f"adapter {adapter.name}: {answer.message}")
    return answer


def _on_hub(adapter: AdapterSpec) -> AdapterFacts | LookUpRefusal:
    try:
        from uellm.hub.connection import HubSettings
        from uellm.hub.lookup import look_up_adapter
    except ImportError as error:
        raise CannotBeDone(
            f"{adapter.uri} cannot be looked up without {error.name}: install the extra `controller`"
        ) from error
    repository = adapter.uri.removeprefix(SCHEME)
    return look_up_adapter(adapter.name, repository, adapter.revision, HubSettings.from_environment())
