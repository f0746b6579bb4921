"""`uellm sidecar` as a process."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE, Process

import aiohttp
import pytest

from uellm.cli.main import main

ONLY = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in set("numpy kopf kubernetes torch httpx aiohttp multidict yarl uvloop".split()):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Refuse())
import uellm.cli.sidecar
ours = {m for m in sys.modules if m.startswith("uellm.") and m.count(".") == 1}
print(*sorted(ours - {"uellm.cli", "uellm.sidecar", "uellm.api", "uellm.errors"}))
"""


def test_it_needs_no_package_but_those_of_its_extra():
    ran = subprocess.run([sys.executable, "-c", ONLY], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert set(ran.stdout.split()) <= {
        "uellm.documents",
        "uellm.hardware",
        "uellm.http",
        "uellm.models",
        "uellm.placement_policies",
        "uellm.proxying",
        "uellm.pod_interface",
        "uellm.prompt",
        "uellm.vllm_routes",
        "uellm.drain_token",
        "uellm.step_time",
    }


@pytest.mark.parametrize(
    ("argument", "value"),
    [("--listen", "8000"), ("--listen", "h:99999"), ("--engine", "127.0.0.1:1"), ("--metrics-listen", "x:y")],
)
def test_bad_arguments_exit_2_and_are_named(tmp_path, capsys, argument, value):
    arguments = {"--listen": "127.0.0.1:0", "--engine": "http://127.0.0.1:1", "--config": str(tmp_path / "c.yaml")}
    arguments[argument] = value
    assert main(["sidecar", *(word for pair in arguments.items() for word in pair)]) == 2
    assert capsys.readouterr().err.startswith(f"uellm sidecar: {argument}: ")


def test_a_missing_or_bad_configuration_exits_2(tmp_path, capsys):
    config = tmp_path / "c.yaml"
    command = ["sidecar", "--listen", "127.0.0.1:0", "--engine", "http://127.0.0.1:1", "--config", str(config)]
    assert main(command) == 2
    config.write_text("classes: [{name: a, ttft: soon}]")
    assert main(command) == 2
    assert "classes[0].ttft" in capsys.readouterr().err


def test_an_address_that_is_taken_exits_1(tmp_path, free_port, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("classes: []")
    taken = f"127.0.0.1:{free_port}"
    assert main(["sidecar", "--listen", taken, "--engine", "http://127.0.0.1:1", "--config", str(config)]) == 1
    assert "cannot listen" in capsys.readouterr().err


@pytest.fixture
async def process(engine, tmp_path):
    config = tmp_path / "sidecar.yaml"
    config.write_text("classes: []")
    anywhere = "127.0.0.1:0"
    command = [sys.executable, "-m", "uellm.cli.main", "sidecar", "--listen", anywhere, "--metrics-listen", anywhere]
    command += ["--engine", f"http://127.0.0.1:{engine.port}", "--config", str(config)]
    running = await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE)
    yield running
    if running.returncode is None:
        running.kill()
        await running.wait()


async def ports(process: Process) -> tuple[int, int]:
    async for line in process.stderr:
        if found := re.search(r"serving on port (\d+), metrics (\d+)", json.loads(line)["message"]):
            return int(found[1]), int(found[2])
    raise AssertionError("it ended before it served")


async def test_sigterm_lets_the_stream_in_hand_finish_and_refuses_late_clients_for_a_while(engine, process):
    engine.script = engine.stream(b"data: [DONE]\n\n", hold=True)
    port, metrics_port = await ports(process)
    async with (
        aiohttp.ClientSession() as client,
        client.post(f"http://127.0.0.1:{port}/v1/completions", data=b"{}") as response,
    ):
        assert await response.content.readany() == b"data: [DONE]\n\n"
        process.send_signal(signal.SIGTERM)
        async for line in process.stderr:
            if b"draining 1 requests" in line:
                break
        async with client.get(f"http://127.0.0.1:{metrics_port}/readyz") as ready:
            assert ready.status == 503
        (await engine.arrivals.get()).go_on.set()
        assert await response.read() == b""
    async with (
        aiohttp.ClientSession() as other,
        other.post(f"http://127.0.0.1:{port}/v1/completions", data=b"{}") as late,
    ):
        assert (late.status, late.headers["x-uellm-outcome"]) == (503, "draining")
    assert await asyncio.wait_for(process.wait(), 20) == 0
    lines = (await process.stdout.read()).splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["completed", "draining"]


async def test_a_second_signal_ends_it_at_once(engine, process):
    engine.script = engine.on_word
    port, _ = await ports(process)
    async with aiohttp.ClientSession() as client:
        asked = asyncio.create_task(client.post(f"http://127.0.0.1:{port}/v1/completions", data=b"{}"))
        await engine.arrivals.get()
        process.send_signal(signal.SIGINT)
        async for line in process.stderr:
            if b"draining 1 requests" in line:
                break
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 5) == 0
        with pytest.raises(aiohttp.ClientError):
            await asked
    (line,) = (await process.stdout.read()).splitlines()
    assert json.loads(line)["outcome"] == "draining"
