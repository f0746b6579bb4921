"""GET /uellm/running of a sidecar: which revision and which `sidecar.yaml` it runs with.

Written by the sidecar, read by the controller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from uellm.documents import VERSION, reading

_NAME = "the report of what runs"
_LONGEST_TEXT = 1024
_MOST_ADAPTERS = 256


@dataclass(frozen=True, slots=True)
class RunningReport:
    """The whole report. A sidecar that is too old to report a field leaves it empty."""

    revision: str = ""
    config_digest: str = ""
    """Digest of the `sidecar.yaml` in force."""
    refused: str = ""
    """Why the sidecar refuses the `sidecar.yaml` that it has now; empty where that one is in force."""
    adapters: tuple[str, ...] = ()
    """The LoRA adapters of that file which the engine serves as the file has them, by name."""
    failed_adapters: tuple[tuple[str, str], ...] = ()
    """Names of those that it does not serve, and why."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        document: dict[str, Any] = {
            "version": VERSION,
            "revision": self.revision,
            "configDigest": self.config_digest,
        }
        if self.refused:
            document["refused"] = self.refused
        if self.adapters:
            document["adapters"] = list(self.adapters)
        if self.failed_adapters:
            document["failedAdapters"] = dict(self.failed_adapters)
        return document

    @classmethod
    def from_dict(cls, document: Any) -> RunningReport:
        """The inverse of `to_dict`. Raises UnreadableDocument for another version.

        The report comes out of a pod, so a field of the wrong type counts as absent.
        """
        with reading(_NAME, document) as data:
            revision, config, refused = (_text(data.get(name)) for name in ("revision", "configDigest", "refused"))
            return cls(revision, config, refused, _names(data.get("adapters")), _failed(data))


def _text(value: Any) -> str:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else ""


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(_text, value[:_MOST_ADAPTERS])) if isinstance(value, list) else ()


def _failed(data: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    value = data.get("failedAdapters")
    entries = list(value.items())[:_MOST_ADAPTERS] if isinstance(value, dict) else []
    return tuple((_text(name), " ".join(_text(why).split())) for name, why in entries)
