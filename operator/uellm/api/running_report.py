"""GET /uellm/running of a sidecar: which revision and which `sidecar.yaml` it runs with.

Written by the sidecar, read by the controller.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uellm.documents import VERSION, reading

_NAME = "the report of what runs"
_LONGEST_TEXT = 1024


@dataclass(frozen=True, slots=True)
class RunningReport:
    """The whole report. A sidecar that is too old to report a field leaves it empty."""

    revision: str = ""
    config_digest: str = ""
    """Digest of the `sidecar.yaml` in force."""
    refused: str = ""
    """Why the sidecar refuses the `sidecar.yaml` that it has now; empty where that one is in force."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        document: dict[str, Any] = {
            "version": VERSION,
            "revision": self.revision,
            "configDigest": self.config_digest,
        }
        return {**document, "refused": self.refused} if self.refused else document

    @classmethod
    def from_dict(cls, document: Any) -> RunningReport:
        """The inverse of `to_dict`. Raises UnreadableDocument for another version.

        The report comes out of a pod, so a field of the wrong type counts as absent.
        """
        with reading(_NAME, document) as data:
            texts = (data.get(name) for name in ("revision", "configDigest", "refused"))
            return cls(*(text[:_LONGEST_TEXT] if isinstance(text, str) else "" for text in texts))
