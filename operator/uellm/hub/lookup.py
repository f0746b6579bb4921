"""From a repository's name to the model's facts, by the hub's file routes alone, which mirrors have too.

`GET ENDPOINT/OWNER/NAME/resolve/REVISION/FILE`: the answer names the commit in `X-Repo-Commit` and what is wrong in
`X-Error-Code`. Source: huggingface_hub's file_download.py and utils/_http.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from uellm.hub.connection import Answer, HubConnection, HubSettings
from uellm.hub.facts import LookUpRefusal, ModelFacts
from uellm.hub.reading import CONFIG, SINGLE, Part, RefusedError, read_facts

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS = re.compile(r"\d{1,6}")
_LIMIT_SECONDS = re.compile(r"\bt=(\d{1,6})\b")


def look_up(repository: str, revision: str, settings: HubSettings) -> ModelFacts | LookUpRefusal:
    """The facts of `owner/name` at a branch, tag or commit. Blocks for seconds; makes no more than a few requests
    for each file of tensors."""
    with HubConnection(settings) as connection:
        return read_facts(_Repository(connection, repository, revision))


class _Repository:
    """The files of a repository at a revision."""

    def __init__(self, connection: HubConnection, repository: str, revision: str) -> None:
        self.connection, self.repository, self.revision = connection, repository, revision
        self.page = f"{connection.settings.endpoint}/{repository}"
        self.where = self.page
        self.remedies = connection.settings.remedies
        self._told_commit = ""

    def read(self, name: str, *, first: int = 0, limit: int) -> Part | None:
        path = f"/{quote(self.repository)}/resolve/{quote(self.revision, safe='')}/{quote(name)}"
        answer = self.connection.get(path, first=first, limit=limit)
        if isinstance(answer, LookUpRefusal):
            raise RefusedError(answer)
        if name == CONFIG:
            self._told_commit = answer.headers.get("x-repo-commit", "")
        if answer.status in (200, 206):
            return Part(answer.body, answer.whole, answer.file_bytes)
        if answer.status == 404 and answer.headers.get("x-error-code", "EntryNotFound") == "EntryNotFound":
            return None
        raise RefusedError(self._refusal(answer))

    def pin(self) -> str:
        # Whatever a branch comes to mean meanwhile.
        if _COMMIT.fullmatch(self._told_commit):
            self.revision = self._told_commit
        return self.revision

    def tensor_files(self) -> Sequence[str]:
        return (SINGLE,)

    def _refusal(self, answer: Answer) -> LookUpRefusal:
        code, status, token = answer.headers.get("x-error-code", ""), answer.status, self.remedies.token
        if code == "GatedRepo":
            what = f"is gated: accept its terms on that page, and give a token of that account ({token})"
            return LookUpRefusal("Gated", f"{self.page} {what}")
        if code == "RevisionNotFound":
            what = f"has no revision {self.revision!r}: give a branch, tag or commit that is listed there"
            return LookUpRefusal("NoSuchRevision", f"{self.page} {what}")
        if code == "RepoNotFound" or status in (401, 403, 404):
            what = f"does not exist, or is private: correct its name, or give a token that may read it ({token})"
            return LookUpRefusal("NoSuchRepository", f"{self.page} {what}")
        if status == 429:
            wait_s = _wait_s(answer.headers)
            when = f"in {wait_s:.0f} s" if wait_s is not None else "later"
            what = f"limits the rate of requests: ask again {when}, or give a token ({token})"
            return LookUpRefusal("RateLimited", f"{self.connection.settings.endpoint} {what}", wait_s)
        return LookUpRefusal("Unreachable", f"{self.page} was answered with status {status}: ask again later")


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next request: `Retry-After`, or `t` of the hub's own `RateLimit`."""
    if _SECONDS.fullmatch(headers.get("retry-after", "")):
        return float(headers["retry-after"])
    found = _LIMIT_SECONDS.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None
