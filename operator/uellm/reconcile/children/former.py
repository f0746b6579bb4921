"""`NAME-config` for pods of a release without revisions: they read all their files there, until they are replaced."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from uellm.api.sidecar_document import SidecarDocument
from uellm.pod_interface import PLAN_FILE, SIDECAR_FILE
from uellm.reconcile.drift import digest

FORMER_SECTIONS = ("model", "engine", "auth")
"""Sections of `sidecar.yaml` that belong to a revision today."""
# Fields of the spec that such a release did not build pods from, or that its sidecar reloads.
_OUTSIDE_PODS = ("replicas", "autoscaling", "suspend", "rollout", "scheduling", "http")


@dataclass(frozen=True)
class FormerConfig:
    """What such pods read and the sidecar's file no longer holds. It stays as their own operator wrote it."""

    plan_json: str
    sections: Mapping[str, Any]
    """Sections of `sidecar.yaml` that belong to a revision today."""

    @classmethod
    def of(cls, data: Mapping[str, str]) -> FormerConfig | None:
        """From the ConfigMap's data; None where a release without revisions did not write it."""
        try:
            plan_json = data[PLAN_FILE]  # first: today's ConfigMaps have none, and YAML takes its time
            document = yaml.safe_load(data[SIDECAR_FILE])
            sections = {name: document[name] for name in FORMER_SECTIONS if name in document}
            return cls(plan_json, sections)
        except (KeyError, TypeError, yaml.YAMLError):
            return None

    def files(self, document: SidecarDocument, *, accepts_priority: bool) -> dict[str, str]:
        """The ConfigMap's data with the reloaded sections of `document`."""
        engine = {name: value for name, value in self.sections.get("engine", {}).items() if name != "acceptsPriority"}
        if accepts_priority and self._orders_by_priority():
            engine["acceptsPriority"] = True
        merged = {**document.to_dict(), **self.sections, "engine": engine}
        return {SIDECAR_FILE: yaml.safe_dump(merged, sort_keys=False), PLAN_FILE: self.plan_json}

    def _orders_by_priority(self) -> bool:
        try:
            arguments = json.loads(self.plan_json)["engine"]["args"]
            found = [index for index, argument in enumerate(arguments) if argument == "--scheduling-policy"]
            return bool(found and arguments[found[-1] + 1] == "priority")
        except (ValueError, LookupError, TypeError):
            return False


def former_spec_digest(spec: Mapping[str, Any]) -> str:
    """Digest of the part of a spec that such a release built pods from, as it wrote it on the Deployment."""
    return digest({name: value for name, value in spec.items() if name not in _OUTSIDE_PODS})
