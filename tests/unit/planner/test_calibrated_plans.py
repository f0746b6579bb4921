"""How a calibration reaches the plan: the command's option, the service's annotation, and the plan's statement."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from uellm.api import parse_service
from uellm.cli.main import main
from uellm.errors import PlanError
from uellm.planner import plan
from uellm.planner.efficiency import Efficiency
from uellm.planner.handover.plan_document import PlanDocument
from uellm.planner.handover.publish import plan_document
from uellm.reconcile.planning.calibration import efficiency_of

MEASURED = Efficiency.calibrated(0.55, 0.66, 0.004, 2e-5, "llama on L4")


def service(build, **annotations: str) -> dict:
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "LLMService",
        "metadata": {"name": "llama", "annotations": annotations},
        "spec": {"model": {"uri": "hf://org/llama", "config": build.config, "maxModelLen": 4096}},
    }


def test_the_annotation_is_read_and_its_absence_means_the_defaults(build) -> None:
    given = service(build, **{"uellm.io/efficiency": json.dumps(MEASURED.to_dict())})
    assert efficiency_of(parse_service(given)) == MEASURED
    assert efficiency_of(parse_service(service(build))) == Efficiency()


@pytest.mark.parametrize(
    ("text", "says"),
    [("{", "is not JSON"), ("[]", "must be an object"), ('{"compute": 0, "memory": 1}', "stepOverheadSeconds")],
)
def test_a_useless_annotation_is_refused_with_its_name(build, text: str, says: str) -> None:
    with pytest.raises(PlanError, match=says) as caught:
        efficiency_of(parse_service(service(build, **{"uellm.io/efficiency": text})))
    assert caught.value.reason == "InvalidOverride"
    assert "uellm.io/efficiency" in str(caught.value)


def test_lower_efficiencies_predict_slower_engines_and_the_plan_names_their_source(build) -> None:
    request = build.request(build.node("a", "H100"), classes=build.chat, workload=build.workload)
    plain, calibrated = plan(request), plan(replace(request, efficiency=MEASURED))
    assert calibrated.predicted.tpot_ms > plain.predicted.tpot_ms
    assert "calibrated by measurements of llama on L4" in " ".join(calibrated.assumptions)
    assert "fitted to published measurements of vLLM" in " ".join(plain.assumptions)


def test_the_launcher_weighs_devices_by_the_same_efficiencies(build) -> None:
    request = replace(build.request(build.node("a", "H100")), efficiency=MEASURED)
    costs = PlanDocument.from_json(plan_document(plan(request), request).to_json()).task.costs
    assert (costs.efficiency.compute, costs.efficiency.memory) == (0.55, 0.66)


def test_uellm_plan_takes_a_calibration_from_a_file(build, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = {"index": 0, "uuid": "GPU-0", "product": "L4", "memoryBytes": 24 << 30}
    device["measured"] = {"bf16GigaflopsPerSecond": 100_000, "memoryBytesPerSecond": 300_000_000_000}
    profile = {"apiVersion": "uellm.io/v1alpha1", "kind": "GPUNodeProfile", "metadata": {"name": "n"}}
    files = {
        "service.yaml": yaml.safe_dump(service(build)),
        "profiles.yaml": yaml.safe_dump({**profile, "status": {"devices": [device]}}),
        "engine.json": json.dumps({"name": "x", "efficiency": MEASURED.to_dict()}),
        "plain.json": json.dumps({"name": "x"}),
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    arguments = ["plan", "-f", str(tmp_path / "service.yaml"), "--profiles", str(tmp_path / "profiles.yaml")]
    assert main([*arguments, "-o", "json", "--calibration", str(tmp_path / "engine.json")]) == 0
    assert "55% of the measured compute" in " ".join(json.loads(capsys.readouterr().out)["assumptions"])
    assert main([*arguments, "--calibration", str(tmp_path / "plain.json")]) == 2
    assert "calibrate with measured stages" in capsys.readouterr().err
