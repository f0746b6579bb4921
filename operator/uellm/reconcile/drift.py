"""Whether an object in the cluster still is what was applied.

It may differ for two reasons: the manifest has changed, or somebody changed the object. A digest of the manifest, kept
in an annotation, shows the first; it also covers fields that the manifest no longer sets. Comparing each field of the
manifest with the object shows the second. So a restarted operator needs no write to find out.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import msgspec

from uellm.api.scalars import quantity
from uellm.errors import BadInput
from uellm.reconcile.names import APPLIED_ANNOTATION

_DIGEST_LENGTH = 16
# Lists to which others may add elements under server-side apply, and the fields that identify an element.
_ASSOCIATIVE = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
    "ports": ("containerPort", "port", "protocol"),
}
_MAY_HAVE_FLOATS = re.compile(rb'(?:^|(?<!\\)":|[\[,])(?:-?\d+[.eE]|null)')
"""Nothing of JSON text looks like a float but floats, infinities (null), and parts of strings."""
_DEFAULTS = {"protocol": "TCP"}
_QUANTITIES = {"limits", "requests", "sizeLimit"}


def digest(document: Any) -> str:
    """A short digest of a JSON document, the same in every process."""
    return hashlib.sha256(canonical(document)).hexdigest()[:_DIGEST_LENGTH]


def canonical(document: Any) -> bytes:
    """The text of a JSON document with sorted keys, the same in every release: digests of it are stored."""
    try:
        # Ten times as fast, and the same but for floats.
        text = msgspec.json.encode(document, order="deterministic")
        if not (_MAY_HAVE_FLOATS.search(text) and _has_floats(document)):
            return text
    except (TypeError, OverflowError):
        pass  # a number of more than 64 bits
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _has_floats(document: Any) -> bool:
    if isinstance(document, Mapping):
        return any(map(_has_floats, document.values()))
    return any(map(_has_floats, document)) if isinstance(document, list | tuple) else isinstance(document, float)


def signed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with its digest in an annotation."""
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), APPLIED_ANNOTATION: digest(manifest)}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def content(obj: Mapping[str, Any]) -> str:
    """Digest of an object without status, versions and bookkeeping."""
    own = {"resourceVersion", "generation", "managedFields", "creationTimestamp"}
    metadata = {name: value for name, value in obj["metadata"].items() if name not in own}
    return digest({**{name: value for name, value in obj.items() if name != "status"}, "metadata": metadata})


def holds(wanted: Any, live: Any, *, field: str = "") -> bool:
    """True where `live` contains all of `wanted`; the rest of `live` is defaults, or belongs to others."""
    if wanted == live:
        return True  # the rule, and by far the fastest to find out
    if isinstance(wanted, Mapping):
        present = live if isinstance(live, Mapping) else {}
        inner = field if field in _QUANTITIES else ""
        return all(holds(value, present.get(name), field=inner or name) for name, value in wanted.items())
    if isinstance(wanted, list):
        return _list_holds(wanted, live if isinstance(live, list) else [], field)
    if not wanted and live is None:
        return True  # the server does not store empty values
    return field in _QUANTITIES and _same_quantity(wanted, live)


def _list_holds(wanted: list[Any], live: list[Any], field: str) -> bool:
    if field in _ASSOCIATIVE:
        present = {_identity(entry, field): entry for entry in live}
        return all(holds(entry, present.get(_identity(entry, field))) for entry in wanted)
    return len(wanted) == len(live) and all(holds(ours, theirs) for ours, theirs in zip(wanted, live, strict=True))


def _identity(entry: Any, field: str) -> tuple[Any, ...]:
    if not isinstance(entry, Mapping):
        return (entry,)
    return tuple(entry.get(name, _DEFAULTS.get(name)) for name in _ASSOCIATIVE[field])


def _same_quantity(one: Any, other: Any) -> bool:
    try:
        return _number(one) == _number(other)
    except (BadInput, InvalidOperation, ValueError):
        return False


def _number(value: Any) -> Decimal:
    return quantity(str(value))
