"""A model of which the service says the name alone, on real kubelets with the real engine."""

from __future__ import annotations

import json

import pytest

from helpers import hub_server
from uellm_devcluster import install
from uellm_devcluster.demo import traffic
from uellm_devcluster.demo.cluster import SERVICE as DIRECTORY

TOKEN = "hf_of_the_test"


@pytest.fixture(scope="module")
def hub(installed, tmp_path_factory):
    """The address of a hub in the cluster, which serves the demo's model to whoever has the token."""
    installed.run(f"kubectl create configmap hub --from-file={hub_server.__file__}")
    installed.run(f"kubectl create secret generic hub --from-literal=token={TOKEN}")
    operator = installed.json(f"kubectl get deployment/uellm-operator -n {install.NAMESPACE}")
    container = {
        "name": "hub",
        "image": operator["spec"]["template"]["spec"]["containers"][0]["image"],
        "command": ["python3", "/hub/hub_server.py", f"/models/{DIRECTORY}"],
        "env": [{"name": "HUB_TOKEN", "value": TOKEN}],
        "readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "volumeMounts": [{"name": "hub", "mountPath": "/hub"}, {"name": "models", "mountPath": "/models"}],
    }
    volumes = [
        {"name": "hub", "configMap": {"name": "hub"}},
        {"name": "models", "hostPath": {"path": install.NODE_MODELS_PATH}},
    ]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "hub"}}
    path = tmp_path_factory.mktemp("hub") / "pod.json"
    path.write_text(json.dumps({**pod, "spec": {"containers": [container], "volumes": volumes}}))
    try:
        installed.run(f"kubectl apply -f {path}")
        installed.run("kubectl wait pod/hub --for=condition=Ready --timeout=60s")
        yield f"http://{installed.json('kubectl get pod/hub')['status']['podIP']}:8080"
    finally:
        installed.run("kubectl delete pod/hub secret/hub configmap/hub --ignore-not-found --grace-period=1")


def test_a_name_alone_is_refused_without_a_token_and_with_it_ends_in_tokens_of_that_commit(hub, new_service):
    own = new_service()
    spec = own.document["spec"]
    spec["model"] = {"uri": "hf://org/model", "dtype": "float32", "maxModelLen": 2048}
    spec["engine"] = {**spec.get("engine", {}), "env": [{"name": "HF_ENDPOINT", "value": hub}]}

    def reason():
        return own.condition("ModelAccessible").get("reason")

    with own.applied():
        own.until(lambda: reason() == "Gated", 90, lambda: json.dumps(own.get().get("status")))
        message = own.condition("ModelAccessible")["message"]
        assert message.startswith(f"{hub}/org/model is gated: ")
        assert own.condition("Planned")["reason"] == "Gated"
        spec["model"]["tokenSecretRef"] = {"name": "hub", "key": "token"}
        own.apply()
        own.wait_ready(1)
        found = own.condition("ModelAccessible")
        assert (found["reason"], "in 1 safetensors file" in found["message"]) == ("Found", True)
        revision = own.get()["status"]["revision"]
        plan = own.shell.json(f"kubectl get configmap/{own.name}-{revision}")["data"]["plan.json"]
        assert json.loads(plan)["engine"]["revision"] == hub_server.COMMIT
        with traffic.port_forward(own.shell, f"service/{own.name}", 80) as port:
            assert traffic.stream_chat(port, own.name, "Tell me about placement.", max_tokens=8).text
