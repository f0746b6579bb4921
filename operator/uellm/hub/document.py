"""The result of a look-up as a document: from the pod that looked up to the operator.

    {"version": 1, "facts": {"commit", "config", "files", "tensors": packed headers in base64, "draft": {...}}}
    {"version": 1, "refusal": {"reason", "message", "retryAfterS"}}

Pods are not trusted: reading it checks every field and has limits.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, get_args

from uellm.documents import VERSION, UnreadableDocument, reading
from uellm.hub.adapter import AdapterFacts
from uellm.hub.facts import DraftFacts, LookUpRefusal, ModelFacts, RefusalReason
from uellm.hub.packing import pack, unpack

CONFIG_BYTES = 400_000
"""The most that a configuration may take, as compact JSON."""
PACKED_BYTES = 900_000
"""The most that configuration and packed headers may take together: an object of Kubernetes holds 1 MiB."""
DRAFT_CONFIG_BYTES, DRAFT_PACKED_BYTES = 100_000, 150_000
"""The most of them that the configuration and the packed headers of a draft may take."""
DOCUMENT_BYTES = 4 << 20
MOST_FILES = 1024
MOST_ADAPTERS = 64
DEEPEST = 64
LONGEST_MESSAGE = 2048
LONGEST_COMMIT = 128
LONGEST_SOURCE = 1024
LONGEST_WAIT_S = 3600.0
_NAME = "the result of the look-up"


def to_document(found: ModelFacts | LookUpRefusal) -> dict[str, Any]:
    """The document. Headers that are too long are left out; a configuration that is too long is a refusal."""
    if isinstance(found, LookUpRefusal):
        return {"version": VERSION, "refusal": refusal_entry(found)}
    if cause := _unfit(found.config):
        return to_document(LookUpRefusal("InvalidAnswer", f"the model cannot be kept: its config.json {cause}"))
    if found.draft is not None and (cause := _unfit(found.draft.facts.config, DRAFT_CONFIG_BYTES)):
        return to_document(LookUpRefusal("InvalidAnswer", f"the draft cannot be kept: its config.json {cause}"))
    facts: dict[str, Any] = {"commit": found.commit, "config": found.config, "files": found.files}
    facts["adapters"] = [each.to_dict() for each in found.adapters]
    if found.draft is not None:
        facts["draft"] = draft_entry(found.draft)
    packed = packed_headers(found)
    if packed is not None:
        facts["tensors"] = base64.b64encode(packed).decode()
    return {"version": VERSION, "facts": facts}


def draft_entry(draft: DraftFacts) -> dict[str, Any]:
    """The facts of a draft as an object, without headers that are too long."""
    facts = draft.facts
    entry = {"source": draft.source, "commit": facts.commit, "config": facts.config, "files": facts.files}
    packed = None if facts.tensors is None else pack(facts.tensors)
    if packed is None or len(packed) > DRAFT_PACKED_BYTES:
        return entry
    return {**entry, "tensors": base64.b64encode(packed).decode()}


def read_draft_entry(entry: Any) -> DraftFacts | None:
    """The inverse of `draft_entry`, each field checked; None for None. Raises UnreadableDocument."""
    if entry is None:
        return None
    with reading(_NAME, entry) as read:
        source = read["source"]
        if not isinstance(source, str) or len(source) > LONGEST_SOURCE or not source.isprintable():
            raise UnreadableDocument(_NAME, "the place of its draft is none")
        packed = _decoded(read.get("tensors"))
        return DraftFacts(source, facts_from(read["config"], read["commit"], read["files"], packed))


def from_document(document: Any) -> ModelFacts | LookUpRefusal:
    """The inverse of `to_document`. Raises UnreadableDocument."""
    with reading(_NAME, document) as read:
        if "refusal" in read:
            return read_refusal(read["refusal"])
        facts = read["facts"]
        packed = _decoded(facts.get("tensors"))
        parts = facts["config"], facts["commit"], facts["files"]
        return facts_from(*parts, packed, facts.get("adapters"), facts.get("draft"))


def facts_from(
    config: Any, commit: Any, files: Any, packed: bytes | None, adapters: Any = None, draft: Any = None
) -> ModelFacts:
    """Facts from their parts, each of them checked. Raises UnreadableDocument."""
    if not isinstance(config, dict):
        raise UnreadableDocument(_NAME, "its configuration is no object")
    if cause := _unfit(config):
        raise UnreadableDocument(_NAME, f"its configuration {cause}")
    if not isinstance(commit, str) or len(commit) > LONGEST_COMMIT or not commit.isprintable():
        raise UnreadableDocument(_NAME, "its commit is none")
    if type(files) is not int or not 0 <= files <= MOST_FILES:
        raise UnreadableDocument(_NAME, "its number of files is none")
    if packed is not None and len(packed) > PACKED_BYTES:
        raise UnreadableDocument(_NAME, f"its packed headers have more than {PACKED_BYTES:,} bytes")
    listed = adapters or []
    if not isinstance(listed, list) or len(listed) > MOST_ADAPTERS:
        raise UnreadableDocument(_NAME, "its adapters are none")
    tensors = None if packed is None else unpack(packed)
    found = tuple(map(AdapterFacts.from_dict, listed))
    return ModelFacts(commit, config, tensors, files, found, read_draft_entry(draft))


def packed_headers(facts: ModelFacts) -> bytes | None:
    """The headers, packed; None where there are none, or where they do not fit beside the rest."""
    if facts.tensors is None:
        return None
    packed, beside = pack(facts.tensors), len(compact(facts.config))
    if facts.draft is not None:
        beside += len(compact(draft_entry(facts.draft)))
    return packed if len(packed) + beside <= PACKED_BYTES else None


def compact(config: Mapping[str, Any]) -> bytes:
    """A configuration as JSON in little room."""
    return json.dumps(config, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _unfit(config: Mapping[str, Any], most_bytes: int = CONFIG_BYTES) -> str:
    """Why a configuration cannot be kept; empty where it can."""
    if _depth(config) > DEEPEST:
        return f"is nested more than {DEEPEST} deep"
    try:
        size = len(compact(config))
    except ValueError:  # half of a surrogate pair
        return "has text that is not Unicode"
    return f"has {size:,} bytes, and at most {most_bytes:,} are kept" if size > most_bytes else ""


def _depth(value: Any) -> int:
    """How deep objects and lists are nested, without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        parts = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [part for inner in parts for part in inner]
    return depth


def _decoded(text: Any) -> bytes | None:
    if text is None:
        return None
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise UnreadableDocument(_NAME, "its packed headers are not base64") from error


def refusal_entry(refusal: LookUpRefusal) -> dict[str, Any]:
    """A refusal as an object."""
    wait = {} if refusal.retry_after_s is None else {"retryAfterS": refusal.retry_after_s}
    return {"reason": refusal.reason, "message": refusal.message, **wait}


def read_refusal(entry: Any) -> LookUpRefusal:
    """The inverse of `refusal_entry`. Raises UnreadableDocument."""
    with reading(_NAME, entry) as read:
        reason, message, wait_s = read["reason"], read["message"], read.get("retryAfterS")
        if reason not in get_args(RefusalReason) or not isinstance(message, str):
            raise UnreadableDocument(_NAME, "its refusal has no reason that is known here")
        if wait_s is not None and not 0.0 <= float(wait_s) <= LONGEST_WAIT_S:  # NaN is not, either
            wait_s = LONGEST_WAIT_S
        told = "".join(each if each.isprintable() else " " for each in message[:LONGEST_MESSAGE])
        return LookUpRefusal(reason, " ".join(told.split()), wait_s and float(wait_s))
