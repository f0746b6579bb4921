"""What LLMService accepts and refuses, and the text of a refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.documents import CASES, VALID_SERVICE, changed_service
from uellm.api import parse_profile, parse_service, read_documents, read_service
from uellm.errors import BadInput
from uellm.hardware import Node

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_a_document_is_accepted_or_refused_by_the_name_of_its_field(case: dict[str, Any]) -> None:
    if "field" not in case:
        parse_service(changed_service(case))
        return
    with pytest.raises(BadInput) as refusal:
        parse_service(changed_service(case))
    assert refusal.value.field.startswith(case["field"])
    assert "\n" not in str(refusal.value)


def test_defaults_are_those_of_the_design() -> None:
    spec = parse_service(VALID_SERVICE).spec
    assert (spec.model.dtype, spec.model.quantization, spec.model.revision) == ("auto", "auto", "main")
    assert spec.slo.objective == "Efficiency"
    assert (spec.placement.policy, spec.placement.gpus.min, spec.placement.gpus.max) == ("HELR", 1, None)
    assert spec.rollout is None  # decided at each change
    assert (spec.replicas, spec.suspend) == (1, False)


def test_no_classes_stand_for_one_default_class_without_targets() -> None:
    slo = parse_service(VALID_SERVICE).spec.slo
    assert [c.name for c in slo.effective_classes] == ["default"]
    assert not slo.effective_classes[0].has_target
    assert slo.effective_default_class == "default"


def test_the_first_class_is_the_default_class() -> None:
    classes = [{"name": "chat", "ttft": "1s"}, {"name": "batch", "e2e": "1m"}]
    slo = parse_service(changed_service({"set": {"spec.slo.classes": classes}})).spec.slo
    assert slo.effective_default_class == "chat"
    assert (slo.classes[0].ttft_s, slo.classes[0].e2e_s, slo.classes[1].e2e_s) == (1.0, None, 60.0)


def test_served_name_and_namespace_fall_back_to_the_usual() -> None:
    service = parse_service(VALID_SERVICE)
    assert (service.served_name, service.namespace) == ("llama", "default")
    named = parse_service(changed_service({"set": {"spec.model.servedName": "m", "metadata.namespace": "team"}}))
    assert (named.served_name, named.namespace) == ("m", "team")


def test_a_document_written_back_holds_what_was_written() -> None:
    document = parse_service(VALID_SERVICE).to_dict()
    assert document["spec"]["model"]["uri"] == VALID_SERVICE["spec"]["model"]["uri"]
    assert parse_service(document) == parse_service(VALID_SERVICE)


_REQUIRED = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution"


def _required(terms: Any) -> dict[str, Any]:
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"nodeSelector": ["zone"]}, "nodeSelector"),
        ({"tolerations": ["gpu"]}, "tolerations[0]"),
        ({"affinity": "none"}, "affinity"),
        ({"affinity": {"nodeAffinity": "none"}}, "affinity.nodeAffinity"),
        ({"affinity": _required("x")}, f"{_REQUIRED}.nodeSelectorTerms"),
        ({"affinity": _required([None])}, f"{_REQUIRED}.nodeSelectorTerms[0]"),
        ({"affinity": _required([{"matchExpressions": "x"}])}, f"{_REQUIRED}.nodeSelectorTerms[0].matchExpressions"),
    ],
)
def test_a_template_by_which_no_node_can_be_chosen_is_refused_with_its_path(spec: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput, match=r"must be a (map|list), as in the spec of a pod") as refused:
        parse_service(changed_service({"set": {"spec.template": {"spec": spec}}}))
    assert refused.value.field == f"spec.template.spec.{field}"


def test_a_template_keeps_the_nulls_that_delete_fields() -> None:
    template = {"spec": {"containers": [{"name": "engine", "livenessProbe": None}]}}
    service = parse_service(changed_service({"set": {"spec.template": template}}))
    assert service.spec.template.spec == template["spec"]


def test_another_kind_is_refused() -> None:
    with pytest.raises(BadInput, match="kind: must be LLMService, not 'Pod'"):
        parse_service({"kind": "Pod"})


def test_a_status_of_a_newer_operator_is_read() -> None:
    service = parse_service({**VALID_SERVICE, "status": {"replicas": 1, "somethingNew": {}}})
    assert service.status is not None
    assert service.status.replicas == 1


def test_the_samples_are_valid() -> None:
    for path in (ROOT / "manifests/samples").glob("*.yaml"):
        for document in read_documents(path):
            parse_service(document)


def test_a_profile_that_hardware_writes_is_valid() -> None:
    profile = {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": "node-1"},
        "spec": {"excludedDevices": [{"uuid": "GPU-b", "reason": "noisy fan"}]},
        "status": {
            "source": "Simulated",
            "devices": [
                {"index": 0, "uuid": "GPU-a", "product": "A", "memoryBytes": 2**31, "allocatedTo": {"podUID": "x"}},
                {
                    "index": 1,
                    "uuid": "GPU-b",
                    "product": "B",
                    "memoryBytes": 2**30,
                    "measured": {"memoryBytesPerSecond": 7},
                },
            ],
            "links": [{"a": "GPU-a", "b": "GPU-b", "kind": "PIX", "bytesPerSecond": 10**10, "latencyNanoseconds": 900}],
        },
    }
    node = Node.from_profile(profile)
    status = {"devices": [d.to_dict() for d in node.devices], "links": [link.to_dict() for link in node.links]}
    parsed = parse_profile({**profile, "status": {"source": "Simulated", **status}})
    assert Node.from_profile(parsed.to_dict()) == node


def test_a_file_is_read_with_lists_and_empty_documents(tmp_path: Path) -> None:
    path = tmp_path / "all.yaml"
    path.write_text(
        "---\n---\nkind: List\nitems:\n- kind: GPUNodeProfileList\n  items: [{kind: GPUNodeProfile}]\n- {kind: Pod}\n"
    )
    assert [d["kind"] for d in read_documents(path)] == ["GPUNodeProfile", "Pod"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "is not YAML"),
        ("- 1", "must hold Kubernetes objects, not list"),
        ("kind: Pod", "must hold one LLMService; it holds 0"),
        ("\x80", "is not YAML"),
    ],
)
def test_a_file_that_is_not_a_service_is_refused_in_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "service.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=says) as refusal:
        read_service(path)
    assert refusal.value.field == str(path)
    assert "\n" not in str(refusal.value)


def test_a_missing_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere\.yaml: cannot be read"):
        read_service(tmp_path / "nowhere.yaml")
