"""One LLMService on real kubelets with the real engine: the guarantees that no smaller test can show."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from uellm_devcluster import install
from uellm_devcluster.demo import readback, traffic

PROMPTS = ("Tell me about placement.", "What is a pipeline?", "Name three layers.")

# Requests from inside the engine's container, where the engine listens on loopback.
STRAIGHT_FROM_THE_ENGINE = """
import json, sys, urllib.request
model, *prompts = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
texts = []
for prompt in prompts:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": 24, "temperature": 0,
            "ignore_eos": True}
    request = urllib.request.Request("http://127.0.0.1:8001/v1/chat/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    texts.append(json.load(opener.open(request, timeout=120))["choices"][0]["message"]["content"])
print(json.dumps(texts))
"""

# A client inside the cluster, on the Service's own address. It opens a new connection for each request, one after the
# other, until it is stopped. Failures and incomplete answers are counted. It asks for tokens once in six seconds only:
# an engine's workers spin for a second after each step, and then an engine that starts beside them on the same cores
# takes many minutes. In between it asks for the list of models, which costs the engine nothing.
CLIENT = """
import json, os, sys, time, urllib.request
address, model = sys.argv[1:]
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
good, bad = {"completions": 0, "models": 0}, []


def call(path, body=None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(f"http://{address}/v1/{path}", data, {"Content-Type": "application/json"})
    try:
        text = opener.open(request, timeout=120).read().decode()
        assert path == "models" or text.rstrip().endswith("data: [DONE]") and '"error"' not in text, text[-200:]
        good[path] += 1
    except Exception as error:
        detail = error.read().decode()[:200] if hasattr(error, "read") else ""
        bad.append(f"{time.strftime('%H:%M:%S')} {path} {error!r} {detail}")


tokens_at = 0.0
while not os.path.exists("/tmp/stop"):
    if time.monotonic() > tokens_at:
        tokens_at = time.monotonic() + 6
        call("completions", {"model": model, "prompt": "Once", "max_tokens": 16, "temperature": 0,
                             "ignore_eos": True, "stream": True})
    else:
        call("models")
    time.sleep(0.2)
with open("/tmp/result", "w") as out:
    json.dump({**good, "bad": bad}, out)
time.sleep(3600)
"""


def test_tokens_through_the_sidecar_equal_tokens_straight_from_the_engine(service):
    pod = service.pods()[0]["metadata"]["name"]
    where = f"{pod} --container engine"
    straight = json.loads(service.shell.python(where, STRAIGHT_FROM_THE_ENGINE, service.name, *PROMPTS))
    with traffic.port_forward(service.shell, f"pod/{pod}", 8000) as port:
        through = [traffic.stream_chat(port, service.name, prompt, max_tokens=24).text for prompt in PROMPTS]
    assert through == straight
    assert all(straight)
    assert len(set(straight)) == len(PROMPTS)


def test_the_model_was_read_from_the_node_s_disk_by_a_pod_that_is_gone(service):
    found = service.condition("ModelAccessible")
    assert (found["reason"], "in 1 safetensors file" in found["message"]) == ("Found", True)
    selector = f"uellm.io/inspection={service.name}"
    assert service.shell.json(f"kubectl get pods --selector {selector}")["items"] == []


def test_the_partition_in_the_engine_s_environment_is_the_one_in_status(service):
    placement = None

    def agrees() -> bool:
        nonlocal placement
        placement = readback.of_pod(service.shell, service.name, service.pods()[0])
        return placement.agrees

    service.until(agrees, 30, lambda: placement.difference)
    layers = service.get()["status"]["placements"][0]["layers"]
    assert placement.partition == ",".join(map(str, layers))
    assert sum(layers) == 8
    assert len(layers) == 2
    assert placement.processes >= 2


def test_a_changed_scheduling_field_is_in_force_in_the_pods_that_run(service):
    before = instances(service)
    service.document["spec"]["slo"]["defaultClass"] = "batch"
    service.apply()
    service.wait_ready(len(before))
    pod = service.pods()[0]["metadata"]["name"]
    counted = 'uellm_requests_total{class="batch",'
    with traffic.port_forward(service.shell, f"pod/{pod}", 8002) as metrics:
        assert counted not in page(metrics)
        with traffic.port_forward(service.shell, f"pod/{pod}", 8000) as port:
            traffic.stream_chat(port, service.name, "Which class am I in?", max_tokens=4)
        assert counted in page(metrics)
    assert instances(service) == before


def test_a_changed_load_leaves_the_pods_alone(service):
    before, load = instances(service), service.document["spec"]["workload"]
    for rate in ("3", load["requestsPerSecond"]):
        load["requestsPerSecond"] = rate
        service.apply()
        service.wait_ready(len(before))
        assert instances(service) == before


def instances(service) -> set[tuple[str, int]]:
    """The pods and how often their containers started."""
    return {
        (pod["metadata"]["uid"], sum(each["restartCount"] for each in pod["status"]["containerStatuses"]))
        for pod in service.pods()
    }


def page(port: int) -> str:
    """The sidecar's metrics."""
    return urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()


@pytest.mark.timeout(1800)
def test_a_rollout_of_two_replicas_loses_no_request(service):
    service.document["spec"]["replicas"] = 2
    service.apply()
    service.wait_ready(2)
    before = {pod["metadata"]["uid"] for pod in service.pods()}
    with client_in_cluster(service) as finish:
        service.document["spec"].setdefault("engine", {})["env"] = [{"name": "ROLLED", "value": "once"}]
        service.apply()
        service.wait_ready(2, starts=4)
        after = {pod["metadata"]["uid"] for pod in service.pods()}
        result = finish()
    assert not before & after
    assert result["bad"] == []
    assert result["completions"] >= 2
    assert result["models"] > 100


@contextmanager
def client_in_cluster(service) -> Iterator:
    """A pod that sends requests to the Service. The block gets a function that stops it and returns the counts."""
    shell = service.shell
    name = f"client-{service.name}"
    address = shell.json(f"kubectl get service/{service.name}")["spec"]["clusterIP"]
    # The client is on the other node, so its requests cross the network as a user's would.
    overrides = {
        "spec": {
            "nodeName": "node-2",
            "containers": [
                {
                    "name": name,
                    "image": "uellm.local/sidecar:dev",
                    "imagePullPolicy": "Never",
                    "command": ["python3", "-c", CLIENT, address, service.name],
                }
            ],
        }
    }
    command = shell.arguments(f"kubectl run {name} --image=uellm.local/sidecar:dev --restart=Never")
    shell.call([*command, f"--overrides={json.dumps(overrides)}"])
    shell.run(f"kubectl wait pod/{name} --for=condition=Ready --timeout=60s")

    def finish():
        shell.python(name, "open('/tmp/stop', 'w').close()")
        written = f"kubectl exec {name} -- test -e /tmp/result"
        service.until(lambda: shell.attempt(written).returncode == 0, 150, lambda: f"{name} wrote no result")
        return json.loads(shell.run(f"kubectl exec {name} -- cat /tmp/result"))

    try:
        yield finish
    finally:
        shell.run(f"kubectl delete pod/{name} --force --grace-period=0 --ignore-not-found")


def test_an_upgrade_of_the_chart_leaves_a_running_engine_alone(service):
    before = [pod["metadata"]["uid"] for pod in service.pods()]
    operators = "kubectl get pods --namespace uellm-system --selector app.kubernetes.io/name=uellm-operator -o name"
    former = service.shell.run(operators)
    service.shell.run(f"{install.helm_command()} --set operator.podAnnotations.upgraded=yes", timeout_s=240)
    service.wait_ready(len(before))
    assert service.shell.run(operators) != former
    assert [pod["metadata"]["uid"] for pod in service.pods()] == before
