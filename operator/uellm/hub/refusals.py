"""What a hub's answer without the file means, as a refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping

from uellm.hub.connection import Answer, HubSettings
from uellm.hub.facts import LookUpRefusal

_SECONDS = re.compile(r"\d{1,6}")
_LIMIT_SECONDS = re.compile(r"\bt=(\d{1,6})\b")


def refusal_of(answer: Answer, repository: str, revision: str, settings: HubSettings) -> LookUpRefusal:
    """The refusal that an answer other than 200 and 206 stands for."""
    page, token = f"{settings.endpoint}/{repository}", settings.remedies.token
    code, status = answer.headers.get("x-error-code", ""), answer.status
    if code == "GatedRepo":
        what = f"is gated: accept its terms on that page, and give a token of that account ({token})"
        return LookUpRefusal("Gated", f"{page} {what}")
    if code == "RevisionNotFound":
        what = f"has no revision {revision!r}: give a branch, tag or commit that is listed there"
        return LookUpRefusal("NoSuchRevision", f"{page} {what}")
    if code == "RepoNotFound" or status in (401, 403, 404):
        what = f"does not exist, or is private: correct its name, or give a token that may read it ({token})"
        return LookUpRefusal("NoSuchRepository", f"{page} {what}")
    if status == 429:
        wait_s = _wait_s(answer.headers)
        when = f"in {wait_s:.0f} s" if wait_s is not None else "later"
        what = f"limits the rate of requests: ask again {when}, or give a token ({token})"
        return LookUpRefusal("RateLimited", f"{settings.endpoint} {what}", wait_s)
    return LookUpRefusal("Unreachable", f"{page} was answered with status {status}: ask again later")


def _wait_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until the next request: `Retry-After`, or `t` of the hub's own `RateLimit`."""
    if _SECONDS.fullmatch(headers.get("retry-after", "")):
        return float(headers["retry-after"])
    found = _LIMIT_SECONDS.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None
