"""What the chart sets up for measuring GPUs, networks and models on nodes."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers.chart import (
    Render,
    environment,
    granted,
    named,
    of_kind,
    profiler_of,
)
from uellm.reconcile.measuring.settings import MeasuringSettings

# helm itself may have to be built first.
pytestmark = pytest.mark.timeout(600)


def measuring_settings(objects: list[dict[str, Any]]) -> MeasuringSettings | None:
    """What the operator reads."""
    (container,) = named(objects, "Deployment", "uellm-operator")["spec"]["template"]["spec"]["containers"]
    text = environment(container).get("UELLM_MEASURING")
    return text and MeasuringSettings.from_json(text, source="", image="engine:1", launcher_image="launcher:1")


def test_pods_that_measure_have_a_priority_below_all_others_and_preempt_nobody(render: Render) -> None:
    objects = render()
    priority = named(objects, "PriorityClass", "uellm-measuring")
    assert priority["value"] < 0
    assert priority["preemptionPolicy"] == "Never"
    assert priority["globalDefault"] is False
    settings = measuring_settings(objects)
    assert settings is not None
    assert (settings.priority_class, settings.namespace) == ("uellm-measuring", "uellm-system-profiler")
    assert (settings.image, settings.launcher_image) == ("engine:1", "launcher:1")


def test_another_priority_is_another_class_because_the_value_of_a_class_cannot_be_changed(render: Render) -> None:
    for value, name in (
        (-1000, "uellm-measuring"),
        (-500, "uellm-measuring-500"),
        (-2_000_000, "uellm-measuring-2000000"),
    ):
        objects = render({"measuring": {"priority": value}})
        (priority,) = of_kind(objects, "PriorityClass")
        assert (priority["metadata"]["name"], priority["value"]) == (name, value)
        settings = measuring_settings(objects)
        assert settings is not None
        assert settings.priority_class == name


def test_the_profiler_reads_the_directory_of_the_node_into_which_they_write(render: Render) -> None:
    objects = render({"measuring": {"directory": "/opt/measured"}})
    settings = measuring_settings(objects)
    assert settings is not None
    assert settings.directory == "/opt/measured"
    template, container = profiler_of(objects)
    assert {"name": "measurements", "hostPath": {"path": "/opt/measured", "type": "DirectoryOrCreate"}} in template[
        "spec"
    ]["volumes"]
    (mount,) = (each for each in container["volumeMounts"] if each["name"] == "measurements")
    assert mount["readOnly"] is True
    assert f"--measurements={mount['mountPath']}" in container["args"]
    assert f"--measuring-namespace={settings.namespace}" in container["args"]


def test_the_profilers_pod_makes_the_directory_of_the_node_that_engines_keep_models_in(render: Render) -> None:
    objects = render({"modelCache": {"path": "/mnt/models", "limit": "500Gi"}})
    spec = profiler_of(objects)[0]["spec"]
    assert {"name": "models", "hostPath": {"path": "/mnt/models", "type": "DirectoryOrCreate"}} in spec["volumes"]
    (container,) = spec["initContainers"]
    assert container["volumeMounts"] == [{"name": "models", "mountPath": "/models"}]
    assert container["command"][-1] == "500Gi"
    # An administrator may have given the directory to another user, whom root without these cannot stand in for.
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["DAC_OVERRIDE", "FOWNER"]}
    privileged = {"privileged": True, "allowPrivilegeEscalation": None, "capabilities": None}
    (container,) = profiler_of(
        render({"modelCache": {"path": "/mnt/models"}, "profiler": {"securityContext": privileged}})
    )[0]["spec"]["initContainers"]
    assert container["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert profiler_of(render({"modelCache": {"path": "/mnt/models"}, "profiler": {"securityContext": None}}))
    (operator,) = (each for each in of_kind(objects, "Deployment") if each["metadata"]["name"] == "uellm-operator")
    args = operator["spec"]["template"]["spec"]["containers"][0]["args"]
    assert "--node-cache=/mnt/models" in args
    assert "initContainers" not in profiler_of(render())[0]["spec"]


@pytest.mark.parametrize(("others", "mode"), [((), 0o1777), (("notes.txt",), 0o755)], ids=["empty", "holds others"])
def test_only_an_empty_directory_is_opened_to_all_whenever_the_profiler_starts(
    render: Render, tmp_path: Path, others: tuple[str, ...], mode: int
) -> None:
    (container,) = profiler_of(render({"modelCache": {"path": "/mnt/models", "limit": "500Gi"}}))[0]["spec"][
        "initContainers"
    ]
    place = tmp_path / "models"
    place.mkdir(mode=0o755)
    for name in others:
        (place / name).touch()
    program, option, script, limit = container["command"]
    for start in range(3):
        subprocess.run([program, option, script.replace("/models", str(place)), limit], check=True)
        assert (place.stat().st_mode & 0o7777, start) == (mode, start)
    assert (place / ".limit").read_text() == "500Gi"
    place.chmod(0o750)  # by an administrator
    subprocess.run([program, option, script.replace("/models", str(place)), limit], check=True)
    assert place.stat().st_mode & 0o7777 == 0o750


def test_profilers_measure_the_network_only_where_that_is_asked_for_and_for_each_other_alone(render: Render) -> None:
    plain, measuring = render(), render({"profiler": {"measureNetwork": True}})
    assert not of_kind(plain, "NetworkPolicy")
    assert not any("network" in each for each in profiler_of(plain)[1]["args"])
    args = profiler_of(measuring)[1]["args"]
    labels = named(measuring, "DaemonSet", "uellm-profiler")["spec"]["template"]["metadata"]["labels"]
    (peers,) = (each.partition("/")[2] for each in args if each.startswith("--network-peers=uellm-system-profiler/"))
    assert dict(each.split("=") for each in peers.split(",")).items() <= labels.items()
    assert "--network-listen=:8009" in args
    spec = named(measuring, "NetworkPolicy", "uellm-profiler")["spec"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    assert spec["policyTypes"] == ["Ingress"]
    assert spec["ingress"] == [
        {"ports": [{"port": 8004}]},
        {"ports": [{"port": 8009}], "from": [{"podSelector": spec["podSelector"]}]},
    ]
    assert granted(plain, "uellm-profiler") == granted(measuring, "uellm-profiler")


@pytest.mark.parametrize("values", [{"measuring": {"enabled": False}}, {"profiler": {"enabled": False}}])
def test_where_nobody_measures_nothing_of_it_is_there(render: Render, values: dict[str, Any]) -> None:
    objects = render(values)
    assert measuring_settings(objects) is None
    assert of_kind(objects, "PriorityClass") == []
