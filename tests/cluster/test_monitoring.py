"""Alerts and dashboards, read by a real Prometheus: every rule loads and fires, every expression is answered."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from uellm_devcluster.errors import ClusterError
from uellm_devcluster.local import free_ports
from uellm_devcluster.packages import unpacked

# Debian's Prometheus may have to be downloaded first.
pytestmark = pytest.mark.timeout(300)

FILES = Path(__file__).parents[2] / "charts" / "uellm" / "files"
ALERTS = yaml.safe_load((FILES / "alerts.yaml").read_text())
DASHBOARDS = {path.stem: json.loads(path.read_text()) for path in sorted((FILES / "dashboards").glob("*.json"))}
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SERVICE = '{namespace="team",name="chat"'

# A cluster in which everything is wrong at once: what the processes would show. Rates grow with every scrape.
WRONG = f"""
uellm_controller_leader 0
uellm_controller_passes_total{{result="failed"}} %(n)s
uellm_controller_passes_total{{result="done"}} %(n)s
uellm_controller_queue_depth 3
uellm_controller_queue_wait_seconds_bucket{{le="10"}} 0
uellm_controller_queue_wait_seconds_bucket{{le="60"}} %(n)s
uellm_controller_queue_wait_seconds_bucket{{le="+Inf"}} %(n)s
uellm_controller_plan_seconds_bucket{{outcome="NoFit",le="60"}} %(n)s
uellm_controller_plan_seconds_bucket{{outcome="NoFit",le="+Inf"}} %(n)s
uellm_controller_plans_waiting 5
uellm_api_requests_total{{verb="GET",code="503"}} %(n)s
uellm_extender_view_age_seconds 300
uellm_extender_refusals_total{{reason="NoProfile"}} %(n)s
uellm_extender_request_seconds_bucket{{verb="filter",le="1"}} %(n)s
uellm_extender_request_seconds_bucket{{verb="filter",le="+Inf"}} %(n)s
uellm_gateway_view_age_seconds 900
uellm_gateway_namespace_refused{{namespace="team"}} 1
uellm_gateway_requests_total{{namespace="team",service="chat",outcome="engine_unavailable"}} %(n)s
uellm_gateway_retries_total{{namespace="team",service="chat",reason="unreachable"}} %(n)s
uellm_gateway_requests_held{{namespace="team",service="chat"}} 3
uellm_gateway_requests_active 3
uellm_profile_written_timestamp_seconds{{node="node-1"}} 1
uellm_profiler_source_failing{{node="node-1"}} 1
uellm_profile_measured_devices{{node="node-1"}} 1
uellm_profile_devices{{node="node-1",state="unhealthy"}} 2
uellm_gpus{{state="free"}} 2
uellm_service_replicas{SERVICE}}} 2
uellm_service_ready_replicas{SERVICE}}} 0
uellm_service_gpus_per_replica{SERVICE}}} 4
uellm_service_condition{SERVICE},condition="Ready"}} 0
uellm_service_condition{SERVICE},condition="Stalled"}} 1
uellm_service_condition{SERVICE},condition="SLOMet"}} 0
uellm_requests_total{{namespace="team",llmservice="chat",class="a",outcome="shed"}} %(n)s
uellm_requests_queued{{namespace="team",llmservice="chat",class="a"}} 1
uellm_requests_in_flight{{namespace="team",llmservice="chat"}} 1
uellm_slo_met_total{{namespace="team",llmservice="chat",class="a"}} %(n)s
uellm_slo_requests_total{{namespace="team",llmservice="chat",class="a"}} %(n)s
uellm_prompt_tokens_total{{namespace="team",llmservice="chat",class="a"}} %(n)s
uellm_output_tokens_total{{namespace="team",llmservice="chat",class="a"}} %(n)s
uellm_good_output_tokens_total{{namespace="team",llmservice="chat",class="a"}} %(n)s
""" + "".join(
    f'{name}_bucket{{namespace="team",llmservice="chat",class="a",le="{le}"}} %(n)s\n'
    for name in ("uellm_ttft_seconds", "uellm_tpot_seconds", "uellm_queue_seconds")
    for le in ("1", "+Inf")
)
WRONG += "".join(
    f'{name}_bucket{{le="{le}"}} %(n)s\n'
    for name in ("uellm_gateway_sent_seconds", "uellm_gateway_held_seconds")
    for le in ("1", "+Inf")
)
# Of another process, which holds the lease, so that its age counts.
LEADER = 'uellm_controller_cache_age_seconds{kind="pods"} 9000\n'
# The alert needs a leader for its age, and another one that there is none: they cannot fire at once.
NOT_AT_ONCE = {"UELLMCacheOld"}


@pytest.fixture(scope="session")
def programs() -> Path:
    """The directory with `prometheus` and `promtool`."""
    installed = shutil.which("promtool")
    if installed and shutil.which("prometheus"):
        return Path(installed).parent
    try:
        return unpacked("prometheus") / "usr" / "bin"
    except ClusterError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no Prometheus on this machine: {error}")


@pytest.fixture
def exposed() -> Iterator[Callable[[str], str]]:
    """Serves text as metrics; `%(n)s` in it grows with every scrape. Returns the address."""
    servers = []

    def start(text: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            scrapes = 0

            def do_GET(self) -> None:
                Handler.scrapes += 1
                body = (text % {"n": Handler.scrapes * 100}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1"

    def get(self, path: str, **query: str) -> Any:
        with DIRECT.open(f"{self._url}/{path}?{urllib.parse.urlencode(query)}", timeout=5) as answer:
            return json.load(answer)["data"]

    def firing(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self.get("alerts")["alerts"] if each["state"] == "firing"}


@pytest.fixture
def prometheus(programs: Path, tmp_path: Path) -> Iterator[Callable[..., Prometheus]]:
    """Starts Prometheus over some targets, with the alerts at once instead of after minutes."""
    processes = []

    def start(*targets: str) -> Prometheus:
        rules = json.loads(json.dumps(ALERTS))
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            rule.pop("for", None)
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(tmp_path / "rules.yaml")],
            "scrape_configs": [{"job_name": "uellm", "static_configs": [{"targets": list(targets)}]}],
        }
        (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        (port,) = free_ports("prometheus").values()
        command = [str(programs / "prometheus"), f"--config.file={tmp_path / 'prometheus.yaml'}"]
        command += [f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        with (tmp_path / "log").open("w") as log:
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return Prometheus(port)

    yield start
    for process in processes:
        process.terminate()
        process.wait(30)


def until(holds: Callable[[], Any], *, timeout_s: float = 60.0) -> Any:
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            if found := holds():
                return found
        except OSError as error:
            found = error
        assert time.monotonic() < deadline_s, found
        time.sleep(0.2)


def test_promtool_accepts_every_rule(programs: Path) -> None:
    command = [str(programs / "promtool"), "check", "rules", str(FILES / "alerts.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(RULES)} rules found" in done.stdout


# What the processes would show on a day with nothing wrong, as promtool reads it: a value every 30 s.
WAKES = 'uellm_gateway_requests_held{namespace="chat",service="llama",pod="gw-1"}'
PLANS = 'uellm_controller_plans_waiting{pod="op-2"}'
HEALTHY = {
    # Each wake-up from zero is a series that comes and goes.
    WAKES: "_x20 1 1 stale _x40 2 2 2 1 stale _x60 1 stale _x30",
    # A new operator, and later a change of many services.
    PLANS: "_x10 3 0x60 40 30 20 10 0x60",
    "uellm_controller_leader": "1x160",
    "uellm_gateway_view_age_seconds": "10x160",
    "uellm_extender_view_age_seconds": "1x160",
    'uellm_service_replicas{namespace="chat",name="llama"}': "1x160",
    'uellm_service_condition{namespace="chat",name="llama",condition="Ready"}': "1x160",
    'uellm_service_condition{namespace="chat",name="llama",condition="Stalled"}': "0x160",
    'uellm_service_condition{namespace="chat",name="llama",condition="SLOMet"}': "1x160",
    'uellm_requests_total{namespace="chat",llmservice="llama",outcome="completed"}': "0+30x160",
    'uellm_requests_total{namespace="chat",llmservice="llama",outcome="shed"}': "0+1x160",
}


@pytest.fixture
def firing(programs: Path, tmp_path: Path) -> Callable[[dict[str, str], str], set[str]]:
    """The alerts that fire at a time, for series with a value every 30 s (`promtool test rules`)."""

    def at(series: dict[str, str], time: str) -> set[str]:
        (tmp_path / "rules.yaml").write_text(yaml.safe_dump(ALERTS))
        case = {
            "interval": "30s",
            "input_series": [{"series": name, "values": values} for name, values in series.items()],
            "alert_rule_test": [{"eval_time": time, "alertname": rule["alert"], "exp_alerts": []} for rule in RULES],
        }
        document = {"rule_files": ["rules.yaml"], "evaluation_interval": "30s", "tests": [case]}
        (tmp_path / "cases.yaml").write_text(yaml.safe_dump(document))
        command = [str(programs / "promtool"), "test", "rules", str(tmp_path / "cases.yaml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        output = done.stdout + done.stderr
        found = set(re.findall(r"alertname: ?(\w+)", output))
        assert (done.returncode == 0) == (not found), output
        return found

    return at


def test_on_a_day_with_wake_ups_and_new_plans_no_alert_fires(firing) -> None:
    fired = {minute: found for minute in range(5, 80, 3) if (found := firing(HEALTHY, f"{minute}m"))}
    assert fired == {}


def test_what_waits_for_more_than_fifteen_minutes_fires(firing) -> None:
    waiting = {**HEALTHY, WAKES: "_x10 2x60", PLANS: "_x10 1x60"}
    assert firing(waiting, "15m") == set()
    assert firing(waiting, "21m") == {"UELLMGatewayHoldsRequests", "UELLMPlannerBehind"}


def test_a_namespace_that_the_gateway_may_not_read_fires_before_its_services_are_unknown(firing) -> None:
    refused = 'uellm_gateway_namespace_refused{namespace="chat",pod="gw-1"}'
    assert firing({**HEALTHY, refused: "_x10 1x2 stale _x60"}, "8m") == set()
    assert firing({**HEALTHY, refused: "_x10 1x60"}, "8m") == {"UELLMGatewayNamespaceRefused"}


def test_in_a_cluster_where_all_is_wrong_every_alert_fires(exposed, prometheus) -> None:
    server = prometheus(exposed(WRONG))
    expected = {rule["alert"] for rule in RULES} - NOT_AT_ONCE
    until(lambda: server.firing() >= expected, timeout_s=40)
    groups = server.get("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}


def test_a_cache_of_the_operator_at_work_that_is_old_fires_and_that_of_one_that_stands_by_does_not(
    exposed, prometheus
) -> None:
    server = prometheus(
        exposed("uellm_controller_leader 1\n" + LEADER), exposed("uellm_controller_leader 0\n" + LEADER)
    )
    until(lambda: "UELLMCacheOld" in server.firing(), timeout_s=30)
    assert "UELLMOperatorDown" not in server.firing()
    (alert,) = [each for each in server.get("alerts")["alerts"] if each["labels"]["alertname"] == "UELLMCacheOld"]
    assert alert["labels"]["kind"] == "pods"


def test_every_panel_of_the_dashboards_has_data(exposed, prometheus) -> None:
    server = prometheus(exposed(WRONG))
    until(lambda: server.get("query", query="count_over_time(uellm_gpus[1m]) > 3")["result"])
    empty = []
    for name, dashboard in DASHBOARDS.items():
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                expression = target["expr"].replace("$__rate_interval", "1m")
                expression = re.sub(r"\$(namespace|service)\b", ".*", expression)
                if not server.get("query", query=expression)["result"]:
                    empty.append((name, panel["title"], expression))
    assert not empty


def test_dashboards_and_alerts_use_only_metrics_that_exist() -> None:
    source = "\n".join(path.read_text() for path in (FILES.parents[2] / "operator").rglob("*.py"))
    used = set(re.findall(r"\buellm_[a-z_]+", json.dumps([DASHBOARDS, ALERTS])))
    assert len(used) > 20
    for name in used:
        base = re.sub(r"_(total|bucket|count|sum)$", "", name)
        assert f'"{base}"' in source or f'"{name}"' in source, name


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
