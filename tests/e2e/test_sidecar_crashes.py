"""A sidecar that keeps crashing, on a real kubelet: the engine beside it goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time

from helpers.pod_processes import processes

# Longer than the engine's liveness probe bears: 6 failures, 10 s apart.
CRASHING_S = 80.0

# A stream straight from the engine, from inside its container, for as long as the test asks.
STREAM = """
import json, sys, time, urllib.request
model, seconds = sys.argv[1], float(sys.argv[2])
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
until, streams, events = time.monotonic() + seconds, 0, 0
while time.monotonic() < until:
    body = {"model": model, "prompt": "Once", "max_tokens": 400, "temperature": 0, "ignore_eos": True, "stream": True}
    request = urllib.request.Request("http://127.0.0.1:8001/v1/completions", json.dumps(body).encode(),
                                     {"Content-Type": "application/json"})
    lines = [line for line in opener.open(request, timeout=60) if line.strip()]
    assert lines[-1].strip() == b"data: [DONE]", lines[-1]
    streams, events = streams + 1, events + len(lines)
print(json.dumps({"streams": streams, "events": events}))
"""


def test_a_sidecar_that_is_killed_again_and_again_does_not_restart_the_engine(service):
    pod = service.pods()[0]
    before = container(pod, "engine")
    result: dict = {}
    streaming = threading.Thread(target=lambda: result.update(stream(service, pod)))
    streaming.start()
    until_s = time.monotonic() + CRASHING_S
    while time.monotonic() < until_s:
        # Nothing tells a process's start; the kubelet starts the sidecar again after longer and longer pauses.
        for process in processes(pod, "sidecar"):
            os.kill(process, signal.SIGKILL)
        time.sleep(0.2)
    streaming.join(120)
    service.wait_ready(1)

    after = {status["name"]: status for status in statuses(find(service, pod))}
    # How often depends on the kubelet's pauses and the machine.
    assert after["sidecar"]["restartCount"] >= 1
    assert after["engine"]["restartCount"] == 0
    assert after["engine"]["containerID"] == before["containerID"]
    assert result["streams"] >= 2


def stream(service, pod) -> dict:
    where = f"{pod['metadata']['name']} --container engine"
    try:
        return json.loads(service.shell.python(where, STREAM, service.name, str(CRASHING_S)))
    except subprocess.SubprocessError as error:
        return {"streams": 0, "error": str(error)}


def find(service, pod) -> dict:
    uid = pod["metadata"]["uid"]
    return next(each for each in service.pods() if each["metadata"]["uid"] == uid)


def statuses(pod) -> list[dict]:
    return [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]


def container(pod, name) -> dict:
    return next(status for status in statuses(pod) if status["name"] == name)
