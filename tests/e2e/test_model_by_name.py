"""A model of which the service says the name alone, on real kubelets with the real engine."""

from __future__ import annotations

import json

import pytest

from helpers import hub_server
from helpers.hub_pod import hub_pod
from uellm_devcluster.demo import traffic

TOKEN = "hf_of_the_test"


@pytest.fixture(scope="module")
def hub(installed, tmp_path_factory):
    with hub_pod(installed, tmp_path_factory.mktemp("hub"), token=TOKEN) as url:
        yield url


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
