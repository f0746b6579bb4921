"""How far a copy is, or how it ended, as a document: from the pod that copies to the operator.

    {"version": 1, "progress": {"bytes", "ofBytes", "leftS", "waits"}}
    {"version": 1, "copied": {"commit", "directory", "files", "bytes", "compiled"}}
    {"version": 1, "refusal": {"reason", "message", "retryAfterS"}}

Pods are not trusted: reading it checks every field and has limits.
"""

from __future__ import annotations

from typing import Any

from uellm.documents import VERSION, UnreadableDocument, reading
from uellm.hub.copy_state import Copied, Progress
from uellm.hub.document import LONGEST_COMMIT, read_refusal, refusal_entry
from uellm.hub.facts import LookUpRefusal

MOST_BYTES = 1 << 50
LONGEST_LEFT_S = 30 * 86400.0
LONGEST_PATH = 1024
_NAME = "the progress of the copy"


def to_document(state: Progress | Copied | LookUpRefusal) -> dict[str, Any]:
    """The document."""
    if isinstance(state, LookUpRefusal):
        return {"version": VERSION, "refusal": refusal_entry(state)}
    if isinstance(state, Copied):
        return {"version": VERSION, "copied": state._asdict()}
    progress = {"bytes": state.bytes, "ofBytes": state.of_bytes, "leftS": state.left_s, "waits": state.waits}
    return {"version": VERSION, "progress": progress}


def from_document(document: Any) -> Progress | Copied | LookUpRefusal:
    """The inverse of `to_document`. Raises UnreadableDocument."""
    with reading(_NAME, document) as read:
        if "refusal" in read:
            return read_refusal(read["refusal"])
        if "copied" in read:
            return _copied(read["copied"])
        progress = read["progress"]
        done, whole, left_s = _count(progress["bytes"]), _count(progress["ofBytes"]), progress.get("leftS")
        if left_s is not None and not 0.0 <= float(left_s) <= LONGEST_LEFT_S:
            left_s = None
        return Progress(min(done, whole), whole, left_s and float(left_s), progress["waits"] is True)


def _copied(entry: Any) -> Copied:
    commit, directory = entry["commit"], entry["directory"]
    if not _is_text(commit, LONGEST_COMMIT) or not _is_text(directory, LONGEST_PATH):
        raise UnreadableDocument(_NAME, "its commit or its directory is none")
    compiled = entry.get("compiled") or ""
    if compiled and not _is_text(compiled, LONGEST_PATH):
        raise UnreadableDocument(_NAME, "its directory for compiled code is none")
    return Copied(commit, directory, _count(entry["files"]), _count(entry["bytes"]), compiled)


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST_BYTES:
        raise UnreadableDocument(_NAME, "it has a number that is none")
    return value
