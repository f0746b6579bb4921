"""Looks a model up on the hub for a command."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from uellm.api.llmservice import HF_URI, REVISION
from uellm.errors import BadInput, CannotBeDone

if TYPE_CHECKING:
    from uellm.hub import ModelFacts

SCHEME = "hf://"


def model_facts(uri: str) -> ModelFacts:
    """The facts of `hf://owner/name[@revision]`; says on standard error which commit they are of.

    Raises BadInput for another form, CannotBeDone where the hub refuses.
    """
    try:
        from uellm.hub import HubSettings, LookUpRefusal, look_up
    except ImportError as error:
        raise CannotBeDone(
            f"{uri} cannot be looked up without {error.name}: install the extra `controller`, or give a config.json"
        ) from error
    named, _, revision = uri.partition("@")
    if not re.fullmatch(HF_URI, named) or not re.fullmatch(REVISION, revision or "main"):
        raise BadInput(uri, "must be hf://owner/name, with @revision if it is not main")
    repository = named.removeprefix(SCHEME)
    found = look_up(repository, revision or "main", HubSettings.from_environment())
    if isinstance(found, LookUpRefusal):
        raise CannotBeDone(found.message)
    print(f"{SCHEME}{repository} at {found.commit}", file=sys.stderr)
    return found
