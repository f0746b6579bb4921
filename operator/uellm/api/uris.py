"""Where files of a model or of an adapter may be, as patterns that hold in Python and in CEL."""

from __future__ import annotations

import re

HF_URI = r"^hf://[A-Za-z0-9][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?$"
PVC_URI = r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*/?$"
FILE_URI = r"^file://(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+/?$"
REVISION = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"
COMMIT = r"^[0-9a-f]{40}$"
_URIS = (HF_URI, PVC_URI, FILE_URI)


def uri_cel() -> str:
    """The rule of a URI in CEL."""
    return " || ".join(f"self.matches('{pattern}')" for pattern in _URIS)


def matches_uri(uri: str) -> bool:
    """The same rule in Python."""
    return any(re.fullmatch(pattern, uri) for pattern in _URIS)
