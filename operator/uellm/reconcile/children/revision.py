"""A revision: everything that a pod's processes are started with, as an immutable ConfigMap named by its content.

    plan.json       the launcher's plan
    engine.yaml     what the sidecar assumes about its engine
    template.json   the pod template
    claim.json      the spec of a pod's ResourceClaim, where pods claim their GPUs
    group.json      where a replica spans nodes: how many, and the pod template of all but the first

The pod template refers to the ConfigMap by name. So a change of any part replaces the pods, and a pod that restarts
finds the files that it was created with. While a revision is in force it is read back and never rendered again: neither
a new measurement nor a newer operator changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import yaml

from uellm.api.names import REVISION_LABEL
from uellm.api.sidecar_document import EngineDocument, SidecarAuth, SidecarEngine
from uellm.pod_interface import ENGINE_FILE, KEYS_DIRECTORY, PLAN_FILE
from uellm.reconcile.children.claim_template import claim_spec
from uellm.reconcile.children.desired_state import DesiredState
from uellm.reconcile.children.pod import pod_template
from uellm.reconcile.children.worker_pod import worker_template
from uellm.reconcile.names import INPUTS_ANNOTATION, SPEC_ANNOTATION, child_metadata, revision_name
from uellm.reconcile.packed_texts import PackedTexts
from uellm.step_basis import StepBasis

TEMPLATE_FILE = "template.json"
CLAIM_FILE = "claim.json"
GROUP_FILE = "group.json"
_OPTIONAL_FILES = {CLAIM_FILE, GROUP_FILE}
_FILES = (PLAN_FILE, ENGINE_FILE, TEMPLATE_FILE)

_OWN_NAME = "@revision@"
"""Placeholder for the revision's name in the content that the name is computed from."""
_NAME_LENGTH = 10


@dataclass(frozen=True)
class Revision:
    """A revision as it was frozen."""

    name: str
    """Ten hexadecimal digits: the digest of the content."""
    files: Mapping[str, str]
    """Content by file name."""
    spec_mark: str
    """Generation and digest of the spec that it is for."""
    inputs: str
    """Digest of the plan that it is for."""

    @property
    def template(self) -> Mapping[str, Any]:
        """The pod template."""
        template: Mapping[str, Any] = json.loads(self.files[TEMPLATE_FILE])
        return template

    @cached_property
    def step_basis(self) -> StepBasis | None:
        """What its step times were predicted for; None where measurements of them are not used elsewhere."""
        try:
            return StepBasis.from_dict(yaml.safe_load(self.files[ENGINE_FILE])["stepBasis"])
        except (KeyError, TypeError, ValueError, yaml.YAMLError):
            return None

    @cached_property
    def engine(self) -> SidecarEngine | None:
        """What its sidecars assume about their engines; None where it cannot be read."""
        try:
            return SidecarEngine.model_validate(yaml.safe_load(self.files[ENGINE_FILE])["engine"])
        except (KeyError, TypeError, ValueError, yaml.YAMLError):
            return None

    @property
    def claim_spec(self) -> Mapping[str, Any] | None:
        """The spec of a pod's ResourceClaim; None where the pods ask for GPUs by the extended resource."""
        if CLAIM_FILE not in self.files:
            return None
        spec: Mapping[str, Any] = json.loads(self.files[CLAIM_FILE])
        return spec

    @property
    def nodes(self) -> int:
        """Nodes that a replica spans."""
        return int(json.loads(self.files[GROUP_FILE])["nodes"]) if GROUP_FILE in self.files else 1

    @property
    def worker_template(self) -> Mapping[str, Any]:
        """The template of the pods of a replica that take no requests, where it spans nodes."""
        template: Mapping[str, Any] = json.loads(self.files[GROUP_FILE])["worker"]
        return template

    def marked(self, spec_mark: str, inputs: str) -> Revision:
        """The same content, made for another spec or plan."""
        return replace(self, spec_mark=spec_mark, inputs=inputs)

    def manifest(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Its ConfigMap, owned by the LLMService `document`."""
        metadata = child_metadata(document, revision_name(document["metadata"]["name"], self.name))
        metadata["labels"] |= {REVISION_LABEL: self.name}
        metadata["annotations"] |= {SPEC_ANNOTATION: self.spec_mark, INPUTS_ANNOTATION: self.inputs}
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "immutable": True,
            "data": dict(self.files),
        }


def make_revision(desired: DesiredState) -> Revision:
    """Render and freeze the revision of a planned service. Raises BadInput where the pod template cannot be merged."""
    files = {
        PLAN_FILE: desired.plan.plan_json,
        ENGINE_FILE: yaml.safe_dump(engine_document(desired).to_dict(), sort_keys=False),
        TEMPLATE_FILE: _compact(pod_template(desired, _OWN_NAME)),
    }
    if desired.plan.claim is not None:
        files[CLAIM_FILE] = _compact(claim_spec(desired.plan.claim))
    if desired.plan.nodes > 1:
        group = {"nodes": desired.plan.nodes, "worker": worker_template(desired, _OWN_NAME)}
        files[GROUP_FILE] = _compact(group)
    name = _digest(files)
    named = {file: text.replace(_OWN_NAME, name) for file, text in files.items()}
    return Revision(name, PackedTexts(named), desired.spec_mark, desired.inputs)


def read_revision(configmap: Mapping[str, Any]) -> Revision | None:
    """The revision in a ConfigMap; None for any other ConfigMap, and where the content does not match the name."""
    metadata, data = configmap["metadata"], configmap.get("data") or {}
    name = (metadata.get("labels") or {}).get(REVISION_LABEL) or metadata["name"].rpartition("-")[2]
    if set(data) - _OPTIONAL_FILES != set(_FILES):
        return None
    if _digest({file: text.replace(name, _OWN_NAME) for file, text in data.items()}) != name:
        return None
    annotations = metadata.get("annotations") or {}
    marks = annotations.get(SPEC_ANNOTATION, ""), annotations.get(INPUTS_ANNOTATION, "")
    return Revision(name, PackedTexts(data), *marks)


def engine_document(desired: DesiredState) -> EngineDocument:
    """`engine.yaml`: what the sidecar of a pod needs to know about the pod and its engine."""
    plan = desired.plan
    engine = {
        "max_num_seqs": plan.max_num_seqs,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        # Left out where it is the default: a new field must not roll pods.
        "task": None if plan.task == "Generate" else plan.task,
        "accepts_priority": plan.priority_scheduling,
        "loads_adapters": plan.loads_adapters,
        "step_seconds": plan.step_seconds,
        "step_factors": plan.step_factors,
    }
    # The keys' directory is mounted by the pod template: a pod that was made without it must not look for keys.
    auth = {} if desired.service.spec.auth is None else {"keys_directory": KEYS_DIRECTORY}
    return EngineDocument(
        revision=_OWN_NAME,
        model=desired.service.served_name,
        engine=SidecarEngine.model_validate({name: value for name, value in engine.items() if value}),
        auth=SidecarAuth.model_validate(auth),
        step_basis=plan.step_basis,
    )


def _compact(document: Any) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"))


def _digest(files: Mapping[str, str]) -> str:
    text = json.dumps(dict(files), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_LENGTH]
