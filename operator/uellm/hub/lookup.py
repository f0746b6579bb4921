"""From a repository's name to the model's facts, by the hub's file routes alone, which mirrors have too.

`GET ENDPOINT/OWNER/NAME/resolve/REVISION/FILE`: the answer names the commit in `X-Repo-Commit` and what is wrong in
`X-Error-Code`. Source: huggingface_hub's file_download.py and utils/_http.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote

from uellm.hub.adapter import CONFIG as ADAPTER_CONFIG
from uellm.hub.adapter import AdapterFacts
from uellm.hub.connection import HubConnection, HubSettings
from uellm.hub.facts import LookUpRefusal, ModelFacts
from uellm.hub.reading import CONFIG, SINGLE, Part, RefusedError, read_adapter, read_facts
from uellm.hub.refusals import refusal_of
from uellm.models import PARAMS

COMMIT = re.compile(r"[0-9a-f]{40}")


def look_up(repository: str, revision: str, settings: HubSettings) -> ModelFacts | LookUpRefusal:
    """The facts of `owner/name` at a branch, tag or commit. Blocks for seconds; makes no more than a few requests
    for each file of tensors."""
    with HubConnection(settings) as connection:
        return read_facts(_Repository(connection, repository, revision))


def look_up_adapter(name: str, repository: str, revision: str, settings: HubSettings) -> AdapterFacts | LookUpRefusal:
    """The same of a LoRA adapter that is served as `name`."""
    with HubConnection(settings) as connection:
        return read_adapter(_Repository(connection, repository, revision), name, f"hf://{repository}@{revision}")


class _Repository:
    """The files of a repository at a revision."""

    def __init__(self, connection: HubConnection, repository: str, revision: str) -> None:
        self.connection, self.repository, self.revision = connection, repository, revision
        self.where = f"{connection.settings.endpoint}/{repository}"
        self._told_commit = ""

    def read(self, name: str, *, first: int = 0, limit: int) -> Part | None:
        path = file_path(self.repository, self.revision, name)
        answer = self.connection.get(path, first=first, limit=limit)
        if isinstance(answer, LookUpRefusal):
            raise RefusedError(answer)
        if name in (CONFIG, PARAMS, ADAPTER_CONFIG):
            self._told_commit = answer.headers.get("x-repo-commit", "")
        if answer.status in (200, 206):
            return Part(answer.body, answer.whole, answer.file_bytes)
        if answer.status == 404 and answer.headers.get("x-error-code", "EntryNotFound") == "EntryNotFound":
            return None
        raise RefusedError(refusal_of(answer, self.repository, self.revision, self.connection.settings))

    def pin(self) -> str:
        # Whatever a branch comes to mean meanwhile.
        if COMMIT.fullmatch(self._told_commit):
            self.revision = self._told_commit
        return self.revision

    def tensor_files(self) -> Sequence[str]:
        return (SINGLE,)


def file_path(repository: str, revision: str, name: str) -> str:
    """The path of a file below the endpoint."""
    return f"/{quote(repository)}/resolve/{quote(revision, safe='')}/{quote(name)}"
