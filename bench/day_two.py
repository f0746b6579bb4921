"""What an administrator's actions cost a running service: seconds without serving, and requests lost.

    python bench/day_two.py [--json FILE] [--only ACTION ...] [--keep]

The development cluster with two real nodes runs one LLMService of one replica on one GPU, so every node has room for
a second one. A client in the cluster sends one request after the other to the Service, each on a new connection: a
short streamed completion every six seconds, and the list of models in between. Every action lasts until its effect is
complete: the service is Ready for the new generation and its pods run what was asked for.

    SECONDS     from the action until its effect is complete
    LONGEST GAP the longest time between the ends of two successful answers
    LOST        requests that did not come back whole

Target: no request lost by any action but the crash of the engine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from uellm.text import aligned
from uellm_devcluster import install, native
from uellm_devcluster.demo import cluster
from uellm_devcluster.demo.shell import Shell
from uellm_devcluster.demo.story import Story
from uellm_devcluster.images import CHECKOUT

NAME = "day-two"
PATIENCE_S = 600.0
ENGINE_IMAGE, OTHER_IMAGE = "uellm.local/engine-cpu:dev", "uellm.local/engine-cpu:other"
OPERATORS = f"--namespace {install.NAMESPACE} --selector app.kubernetes.io/name=uellm-operator"
# `model` is left out, because the served name is one of the things that change. Tokens are asked for now and then only:
# an engine on CPUs spins for a second after each step, and on two cores one that is kept busy starves one that starts.
# In between the engine is asked for its models, which costs it nothing.
CLIENT = """
import json, sys, time, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
BODY = json.dumps({"prompt": "Once", "max_tokens": 4, "temperature": 0, "ignore_eos": True, "stream": True}).encode()


def call(path, body):
    url = f"http://{sys.argv[1]}/v1/{path}"
    try:
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        text = opener.open(request, timeout=120).read().decode()
        whole = text.rstrip().endswith("data: [DONE]") and '"error"' not in text if body else '"object"' in text
        return "" if whole else text[-200:]
    except Exception as error:
        return path + ": " + repr(error) + (error.read().decode()[:200] if hasattr(error, "read") else "")


tokens_at = 0.0
with open("/tmp/requests", "w", buffering=1) as out:
    while True:
        body = BODY if time.monotonic() > tokens_at else None
        if body:
            tokens_at = time.monotonic() + 6
        began = time.time()
        why = call("completions" if body else "models", body)
        print(json.dumps([began, time.time(), why]), file=out)
        time.sleep(0.2)
"""


@dataclass(frozen=True)
class Cost:
    """What one action cost."""

    action: str
    seconds: float
    longest_gap_s: float
    requests: int
    lost: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "action": self.action,
            "seconds": round(self.seconds, 1),
            "longestGapSeconds": round(self.longest_gap_s, 2),
            "requests": self.requests,
            "lost": list(self.lost),
        }


class Day:
    """One service, its client, and what is done to them."""

    def __init__(self, shell: Shell, scratch: Path) -> None:
        self.shell = shell
        self._scratch = scratch
        self.document: dict[str, Any] = yaml.safe_load(cluster.SAMPLE.read_text())
        self.document["metadata"]["name"] = NAME
        self.spec = self.document["spec"]
        self.spec["parallelism"] = {"tensor": 1, "pipeline": 1}

    def apply(self) -> None:
        """Apply the service as it is now."""
        path = self._scratch / "day-two.yaml"
        path.write_text(yaml.safe_dump(self.document))
        self.shell.run(f"kubectl apply -f {path}")

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until `holds()`."""
        cluster.until(holds, PATIENCE_S, lambda: f"{what}: {json.dumps(self.status())[:2000]}")

    def status(self) -> dict[str, Any]:
        """The service's status."""
        found: dict[str, Any] = self.shell.json(f"kubectl get llmservice/{NAME}").get("status", {})
        return found

    def ready(self, replicas: int = 1) -> None:
        """Wait until the service is Ready for its generation, and no pod of an earlier one is left."""

        def holds() -> bool:
            is_ready = cluster.is_ready(self.shell.json(f"kubectl get llmservice/{NAME}"), replicas)
            pods = self.shell.json(f"kubectl get pods --selector uellm.io/service={NAME}")["items"]
            return is_ready and len(pods) == replicas

        self.until(holds, f"{replicas} replicas ready")

    def changed(self) -> None:
        """Apply, and wait until the change is in effect."""
        self.apply()
        self.ready()

    def pod(self) -> dict[str, Any]:
        """The only pod."""
        (pod,) = install.pods(self.shell, NAME)
        return pod

    def requests(self) -> list[tuple[float, float, str]]:
        """Every request so far: begin, end, and why it failed."""
        text = self.shell.run(f"kubectl exec client-{NAME} -- cat /tmp/requests")
        return [tuple(json.loads(line)) for line in text.splitlines() if line.endswith("]")]

    def scale(self, replicas: int) -> None:
        """`kubectl scale`."""
        self.shell.run(f"kubectl scale llmservice/{NAME} --replicas={replicas}")
        self.spec["replicas"] = replicas
        self.ready(replicas)

    def kill_container(self, container: str) -> None:
        """`kill -9` of a container's first process, which only its node can do."""
        pod, before = self.pod(), self._restarts()
        started = pod["status"].get("initContainerStatuses", []) + pod["status"]["containerStatuses"]
        (found,) = (each["containerID"] for each in started if each["name"] == container)
        name = found.rpartition("/")[2]
        ctr = self.shell.arguments(f"ctr --namespace k8s.io tasks kill --signal SIGKILL {name}")
        self.shell.call(native.entering(pod["spec"]["nodeName"], ctr))
        self.until(lambda: self._restarts() > before, f"the {container} container restarted")
        self.ready()

    def kill(self, container: str, pattern: str) -> None:
        """`kill -9` of a program in a container that is not its first process."""
        before = self._restarts()
        program = (
            "import os, signal, pathlib\n"
            f"found = [p for p in pathlib.Path('/proc').glob('[0-9]*') if {pattern!r} in "
            "(p / 'cmdline').read_bytes().replace(bytes(1), b' ').decode()]\n"
            "[os.kill(int(p.name), signal.SIGKILL) for p in found if int(p.name) not in (1, os.getpid())]"
        )
        name = self.pod()["metadata"]["name"]
        with contextlib.suppress(Exception):  # the container may end before kubectl has its exit status
            self.shell.python(f"{name} --container {container}", program)
        self.until(lambda: self._restarts() > before, f"the {container} container restarted")
        self.ready()

    def _restarts(self) -> int:
        status = self.pod()["status"]
        found = status.get("containerStatuses", []) + status.get("initContainerStatuses", [])
        return sum(container["restartCount"] for container in found)


def target(day: Day) -> None:
    day.spec["slo"]["classes"][0]["ttft"] = "3s"
    day.changed()


def scale_out(day: Day) -> None:
    day.scale(2)


def scale_in(day: Day) -> None:
    day.scale(1)


def served_name(day: Day) -> None:
    day.spec["model"]["servedName"] = "renamed"
    day.changed()


def arguments(day: Day) -> None:
    day.spec.setdefault("engine", {})["args"] = ["--seed=7"]
    day.changed()


def image(day: Day) -> None:
    day.spec.setdefault("engine", {})["image"] = OTHER_IMAGE
    day.changed()


def cordon(day: Day) -> None:
    node = day.pod()["spec"]["nodeName"]
    day.shell.run(f"kubectl cordon {node}")
    # Its replica goes on serving, and a stand-in starts in case that a drain follows. Uncordoning ends one of the two.
    day.until(lambda: len(install.pods(day.shell, NAME)) == 2, "a stand-in")
    day.shell.run(f"kubectl uncordon {node}")
    day.ready()


def drain(day: Day) -> None:
    node = day.pod()["spec"]["nodeName"]
    day.shell.run(
        f"kubectl drain {node} --ignore-daemonsets --delete-emptydir-data --timeout=300s "
        f"--pod-selector=uellm.io/service={NAME}",
        timeout_s=330,
    )
    day.ready()
    assert day.pod()["spec"]["nodeName"] != node
    day.shell.run(f"kubectl uncordon {node}")


def operator_upgrade(day: Day) -> None:
    uid = day.pod()["metadata"]["uid"]
    day.shell.run(f"{install.helm_command()} --set operator.podAnnotations.upgraded=yes", timeout_s=240)
    assert day.pod()["metadata"]["uid"] == uid, "the upgrade replaced the pod"
    day.ready()


def operator_kill(day: Day) -> None:
    day.shell.run(f"kubectl delete pods {OPERATORS} --force --grace-period=0")
    day.shell.run(f"kubectl wait pods {OPERATORS} --for=condition=Ready --timeout=180s", timeout_s=200)
    day.ready()


def sidecar_kill(day: Day) -> None:
    day.kill_container("sidecar")


def engine_kill(day: Day) -> None:
    day.kill("engine", "vllm.entrypoints")


ACTIONS: dict[str, Callable[[Day], None]] = {
    "a target (reloaded)": target,
    "scale to 2": scale_out,
    "scale to 1": scale_in,
    "servedName": served_name,
    "engine.args": arguments,
    "engine.image": image,
    "cordon": cordon,
    "drain with room": drain,
    "operator upgrade": operator_upgrade,
    "operator kill": operator_kill,
    "sidecar kill": sidecar_kill,
    "engine kill": engine_kill,
}
MAY_LOSE = {"sidecar kill", "engine kill"}


def measured(day: Day, name: str) -> Cost:
    """Carry out one action, and count what the client saw."""
    began_s = time.time()
    ACTIONS[name](day)
    ended_s = time.time()
    time.sleep(2)
    seen = [each for each in day.requests() if each[1] >= began_s and each[0] <= ended_s]
    ends = [began_s, *(end for _, end, why in seen if not why), ended_s]
    gap_s = max(after - before for before, after in itertools.pairwise(ends))
    return Cost(name, ended_s - began_s, gap_s, len(seen), tuple(why for _, _, why in seen if why))


@contextlib.contextmanager
def client(day: Day) -> Iterator[None]:
    """A client pod on node-2, for as long as the block runs."""
    shell, name = day.shell, f"client-{NAME}"
    address = shell.json(f"kubectl get service/{NAME}")["spec"]["clusterIP"]
    container = {
        "name": name,
        "image": "uellm.local/sidecar:dev",
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", CLIENT, address],
    }
    overrides = {"spec": {"nodeName": "node-2", "containers": [container]}}
    command = shell.arguments(f"kubectl run {name} --image=uellm.local/sidecar:dev --restart=Never")
    shell.call([*command, f"--overrides={json.dumps(overrides)}"])
    shell.run(f"kubectl wait pod/{name} --for=condition=Ready --timeout=60s")
    try:
        yield
    finally:
        shell.run(f"kubectl delete pod/{name} --force --grace-period=0 --ignore-not-found")


def tag_image(shell: Shell) -> None:
    """Give the engine's image a second name on both nodes."""
    for node in ("node-1", "node-2"):
        ctr = shell.arguments(f"ctr --namespace k8s.io images tag --force {ENGINE_IMAGE} {OTHER_IMAGE}")
        shell.call(native.entering(node, ctr))


def run(names: list[str], keep: bool) -> list[Cost]:
    """Every action in turn."""
    story = Story()
    scratch = CHECKOUT / "build"
    costs = []
    try:
        shell = cluster.bring_up(story, cluster.find_programs(story))
        cluster.wait_for_profiles(shell)
        tag_image(shell)
        day = Day(shell, scratch)
        # The first pod goes to node-1, because the client is on node-2 and a drain must not remove it.
        shell.run("kubectl cordon node-2")
        day.changed()
        shell.run("kubectl uncordon node-2")
        with client(day):
            for name in names:
                costs.append(measured(day, name))
                print(json.dumps(costs[-1].to_dict()), file=sys.stderr, flush=True)
    finally:
        if not keep:
            cluster.down()
    return costs


def table(costs: list[Cost]) -> str:
    """The table that is printed."""
    lines = [["ACTION", "SECONDS", "LONGEST GAP", "REQUESTS", "LOST"]]
    for cost in costs:
        figures = [f"{cost.seconds:.0f}", f"{cost.longest_gap_s:.1f} s", str(cost.requests), str(len(cost.lost))]
        lines.append([cost.action, *figures])
    return "\n".join(aligned(lines))


def main() -> int:
    """Measure, print, write. Returns 1 where an action lost requests that it must not lose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=ACTIONS, metavar="ACTION")
    parser.add_argument("--keep", action="store_true", help="leave the cluster running")
    args = parser.parse_args()
    costs = run(args.only or list(ACTIONS), args.keep)
    print(table(costs))
    if args.json:
        args.json.write_text(json.dumps([cost.to_dict() for cost in costs], indent=1))
    return int(any(cost.lost for cost in costs if cost.action not in MAY_LOSE))


if __name__ == "__main__":
    sys.exit(main())
