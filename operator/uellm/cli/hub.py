"""Looks a model up on the hub for a command."""

from __future__ import annotations

import re
import sys

from uellm.api.uris import HF_URI, REVISION
from uellm.errors import BadInput, CannotBeDone
from uellm.hub import LookUpRefusal, ModelFacts

SCHEME = "hf://"


def model_facts(uri: str) -> ModelFacts:
    """The facts of `hf://owner/name[@revision]`; says on standard error which commit they are of.

    Raises BadInput for another form, CannotBeDone where the hub refuses.
    """
    try:
        from uellm.hub.connection import HubSettings
        from uellm.hub.lookup import look_up
    except ImportError as error:
        raise CannotBeDone(
            f"{uri} cannot be looked up without {error.name}: install the extra `controller`, or give a config.json"
        ) from error
    repository, revision = repository_of(uri)
    settings = HubSettings.from_environment()
    if not re.match(r"https?://[^/]", settings.endpoint):
        raise BadInput("HF_ENDPOINT", f"{settings.endpoint!r} is no web address, such as https://huggingface.co")
    found = look_up(repository, revision, settings)
    if isinstance(found, LookUpRefusal):
        raise CannotBeDone(found.message)
    print(f"{SCHEME}{repository} at {found.commit}", file=sys.stderr)
    return found


def repository_of(uri: str) -> tuple[str, str]:
    """Repository and revision of `hf://owner/name[@revision]`. Raises BadInput for another form."""
    named, _, revision = uri.partition("@")
    if not re.fullmatch(HF_URI, named) or not re.fullmatch(REVISION, revision or "main"):
        raise BadInput(uri, "must be hf://owner/name, with @revision if it is not main")
    return named.removeprefix(SCHEME), revision or "main"
