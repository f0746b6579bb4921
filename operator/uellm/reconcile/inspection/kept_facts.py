"""A model's facts as the ConfigMap `NAME-model`. Pure.

    model.json      what they are of: the digests of the question and of the model that it names, the commit, the number
                    of files; and their own digest
    config.json     the configuration
    tensors.json.z  the packed headers, where there are any and they fit

An operator that was restarted reads them and asks nobody. What it reads is checked: others may edit the object.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from uellm.documents import VERSION, UnreadableDocument, parsed, reading
from uellm.hub import ModelFacts
from uellm.hub.document import compact, draft_entry, facts_from, packed_headers
from uellm.reconcile.inspection.question import KnownCommits
from uellm.reconcile.names import child_metadata, model_name

MODEL_FILE, CONFIG_FILE, TENSORS_FILE = "model.json", "config.json", "tensors.json.z"


def facts_configmap(document: Mapping[str, Any], facts: ModelFacts, source: str, model: str = "") -> dict[str, Any]:
    """The ConfigMap, owned by the LLMService `document`. `source`: the digest of the question; `model`: that of its
    model."""
    config, packed = compact(facts.config).decode(), packed_headers(facts)
    about = {"version": VERSION, "source": source, "commit": facts.commit, "files": facts.files}
    if model:
        about["model"] = model
    if facts.adapters:
        about["adapters"] = [each.to_dict() for each in facts.adapters]
    if facts.draft is not None:
        about["draft"] = draft_entry(facts.draft)
    about["digest"] = _digest(about, config, packed)
    binary = {} if packed is None else {"binaryData": {TENSORS_FILE: base64.b64encode(packed).decode()}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": child_metadata(document, model_name(document["metadata"]["name"])),
        "data": {MODEL_FILE: json.dumps(about, separators=(",", ":")), CONFIG_FILE: config},
        **binary,
    }


def read_facts(configmap: Mapping[str, Any], source: str) -> ModelFacts | None:
    """The facts; None where they answer another question, or are not as they were written."""
    data, binary = configmap.get("data") or {}, configmap.get("binaryData") or {}
    try:
        with reading(MODEL_FILE, parsed(MODEL_FILE, data.get(MODEL_FILE) or "")) as about:
            config, packed = data[CONFIG_FILE], _packed(binary)
            if about["source"] != source or about["digest"] != _digest(about, config, packed):
                return None
            parts = parsed(CONFIG_FILE, config), about["commit"], about["files"], packed
            return facts_from(*parts, about.get("adapters"), about.get("draft"))
    except (UnreadableDocument, binascii.Error):
        return None


def read_commits(configmap: Mapping[str, Any], model: str) -> KnownCommits:
    """The commits of a model, whatever else was asked with it; none where the facts are of another one."""
    data = configmap.get("data") or {}
    try:
        with reading(MODEL_FILE, parsed(MODEL_FILE, data.get(MODEL_FILE) or "")) as about:
            packed = _packed(configmap.get("binaryData") or {})
            if about.get("model") != model or about["digest"] != _digest(about, data[CONFIG_FILE], packed):
                return KnownCommits()
            draft = about.get("draft") or {"source": "", "commit": ""}
            return KnownCommits(about["commit"], draft["source"], draft["commit"])
    except (UnreadableDocument, binascii.Error):
        return KnownCommits()


def names_model(configmap: Mapping[str, Any]) -> bool:
    """Whether it says of which model the facts are; earlier releases did not write that."""
    return '"model":' in ((configmap.get("data") or {}).get(MODEL_FILE) or "")


def _packed(binary: Mapping[str, Any]) -> bytes | None:
    text = binary.get(TENSORS_FILE)
    return None if text is None else base64.b64decode(text, validate=True)


def _digest(about: Mapping[str, Any], config: str, packed: bytes | None) -> str:
    draft = [about["draft"]] if "draft" in about else []
    model = [about["model"]] if "model" in about else []
    told = json.dumps(
        [about["source"], about["commit"], about["files"], config, *(about.get("adapters") or ()), *draft, *model],
        sort_keys=bool(draft),
    )
    return hashlib.sha256(told.encode() + b"\0" + (packed or b"")).hexdigest()
