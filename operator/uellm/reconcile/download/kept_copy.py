"""That the copy of a service's model is complete, as the ConfigMap `NAME-weights`. Pure.

    copy.json   which copy it is, where it is, and of how many files and bytes

An operator that was restarted reads it and asks nobody. Who empties a volume deletes it, too: then a pod looks again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from uellm.documents import VERSION, UnreadableDocument, parsed
from uellm.hub.copy_document import from_document
from uellm.hub.copy_state import Copied
from uellm.reconcile.names import child_metadata, weights_name

COPY_FILE = "copy.json"


def copy_configmap(
    document: Mapping[str, Any], copy_digest: str, copy: Copied, adapters: Sequence[str] = ()
) -> dict[str, Any]:
    """The ConfigMap, owned by the LLMService `document`. `adapters`: directories of what was copied with it."""
    about = {"version": VERSION, "copy": copy_digest, "copied": copy._asdict(), "adapters": list(adapters)}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(document, weights_name(document["metadata"]["name"])),
        "data": {COPY_FILE: json.dumps(about, separators=(",", ":"))},
    }


def read_copy(configmap: Mapping[str, Any], copy_digest: str) -> Copied | None:
    """The copy; None where it is another one, or where the ConfigMap is not as it was written."""
    about, found = _read(configmap)
    return found if about.get("copy") == copy_digest else None


def directories(configmap: Mapping[str, Any]) -> set[str]:
    """Directories of the copy and its adapters, whichever they are; none where it is not as it was written."""
    about, found = _read(configmap)
    adapters = about.get("adapters")
    named = adapters if isinstance(adapters, list) else ()
    return {each for each in (*named, found and found.directory) if isinstance(each, str)}


def _read(configmap: Mapping[str, Any]) -> tuple[Mapping[str, Any], Copied | None]:
    try:
        about = parsed(COPY_FILE, (configmap.get("data") or {}).get(COPY_FILE) or "")
        found = from_document(about)
    except UnreadableDocument:
        return {}, None
    return about, found if isinstance(found, Copied) else None
