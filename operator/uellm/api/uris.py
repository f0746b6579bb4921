"""Where files of a model or of an adapter may be, as patterns that hold in Python and in CEL."""

from __future__ import annotations

import re

HF_URI = r"^hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
PVC_URI = r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?$"
FILE_URI = r"^file://(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+/?$"
# A registry without a dot or a port would be taken for a repository of Docker Hub.
_REGISTRY = r"(localhost(:[0-9]{1,5})?|[A-Za-z0-9-]+([.][A-Za-z0-9-]+)+(:[0-9]{1,5})?|[A-Za-z0-9-]+:[0-9]{1,5})"
_REPOSITORY = r"(/[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*)+"
_VERSION = r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
_DIRECTORY = r"(#[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)?"
OCI_URI = rf"^oci://{_REGISTRY}{_REPOSITORY}{_VERSION}{_DIRECTORY}$"
BUCKET_URI = r"^(s3|gs)://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/[A-Za-z0-9_-][A-Za-z0-9._=+-]*)*/?$"
REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
COMMIT = r"^[0-9a-f]{40}$"
ADAPTER_URIS = (HF_URI, PVC_URI, FILE_URI)
MODEL_URIS = (*ADAPTER_URIS, OCI_URI, BUCKET_URI)


def uri_cel(patterns: tuple[str, ...]) -> str:
    """The rule of a URI in CEL."""
    return " || ".join(f"self.matches('{pattern}')" for pattern in patterns)


def matches_uri(uri: str, patterns: tuple[str, ...]) -> bool:
    """The same rule in Python."""
    return any(re.fullmatch(pattern, uri) for pattern in patterns)
