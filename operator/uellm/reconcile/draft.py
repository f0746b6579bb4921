"""The model or head that drafts for speculation, as `--speculative-config` in spec.engine.args names it. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from uellm.api import LLMService
from uellm.api.uris import HF_URI, REVISION
from uellm.errors import PlanError
from uellm.hub import DraftFacts, ModelFacts
from uellm.hub.copy_state import copy_path
from uellm.planner.vllm.flags import UserArgs
from uellm.planner.vllm.speculation import speculation_of, with_draft
from uellm.reconcile.model_claim import MODEL_MOUNT

_HF = "hf://"


class DraftSource(NamedTuple):
    """Where a draft is: in a repository of the hub, or at a path in the engine's container."""

    repository: str
    revision: str
    path: str

    @property
    def source(self) -> str:
        """What identifies its files, as far as the spec tells."""
        return self.path or f"{_HF}{self.repository}@{self.revision}"


def draft_source(service: LLMService) -> DraftSource | None:
    """The draft of a service; None where none is named, or where the plan will say what is wrong with it."""
    try:
        found = speculation_of(UserArgs(service.spec.engine.args))
    except PlanError:
        return None
    if found is None or not found.model:
        return None
    if found.model.startswith("/"):
        return DraftSource("", "", found.model.rstrip("/"))
    repository, revision = found.model.removeprefix(_HF), found.revision or "main"
    if not re.fullmatch(HF_URI, _HF + repository) or not re.fullmatch(REVISION, revision):
        return None
    return DraftSource(repository, revision, "")


def draft_facts(service: LLMService, facts: ModelFacts | None) -> DraftFacts | None:
    """What is known of it; None where nothing is, or where the facts are of another one."""
    wanted = draft_source(service)
    known = facts.draft if facts is not None else None
    return known if wanted is not None and known is not None and known.source == wanted.source else None


def draft_is_known(service: LLMService, facts: ModelFacts | None) -> bool:
    """Whether nothing is left to look up."""
    return draft_source(service) is None or draft_facts(service, facts) is not None


def copied_draft(service: LLMService, facts: ModelFacts | None) -> tuple[str, str] | None:
    """Repository and commit of a draft of the hub that is copied to the model's cache; None for none."""
    wanted = draft_source(service)
    if wanted is None or not wanted.repository or service.spec.model.cache is None:
        return None
    known = draft_facts(service, facts)
    return wanted.repository, (known.facts.commit if known is not None else "") or wanted.revision


def args_with_draft(service: LLMService, facts: ModelFacts | None, args: tuple[str, ...]) -> tuple[str, ...]:
    """The engine's arguments with the draft at the commit that was looked up, or in its copy."""
    wanted = draft_source(service)
    if wanted is None or not wanted.repository:
        return args
    if (copy := copied_draft(service, facts)) is not None:
        return with_draft(args, f"{MODEL_MOUNT}/{copy_path(*copy)}", "")
    known = draft_facts(service, facts)
    commit = known.facts.commit if known is not None else ""
    return with_draft(args, wanted.repository, commit or wanted.revision)
