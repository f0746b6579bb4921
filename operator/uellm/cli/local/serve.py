"""Runs a prepared service: starts the launcher (which becomes the engine) and the sidecar, and waits for them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from uellm.cli.local.children import ChildCommand, Children, Ended
from uellm.cli.local.prepare import Prepared
from uellm.errors import CannotBeDone
from uellm.placement_report import PlacementReport
from uellm.pod_interface import ENGINE_READY_PATH, PLACEMENT_VARIABLE

LOOPBACK = "127.0.0.1"
ENGINE, SIDECAR = "engine", "sidecar"
READY_POLL_S = 0.5
Say = Callable[[str, str], None]


class Ports(NamedTuple):
    """Ports on loopback. Clients only need `service`."""

    service: int
    engine: int
    metrics: int


def choose_ports(service: int) -> Ports:
    """The requested port and two free ones. Raises CannotBeDone if the first is taken."""
    with socket.socket() as first, socket.socket() as second, socket.socket() as third:
        # As the sidecar does: a port whose last connections are still closing counts as free.
        first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            first.bind((LOOPBACK, service))
        except OSError as error:
            raise CannotBeDone(f"--port {service}: {error.strerror}: choose another") from error
        second.bind((LOOPBACK, 0))
        third.bind((LOOPBACK, 0))
        return Ports(*(each.getsockname()[1] for each in (first, second, third)))


async def serve(prepared: Prepared, directory: Path, ports: Ports, say: Say) -> None:
    """Serve until SIGINT or SIGTERM; a second signal ends at once. Raises CannotBeDone if a process ends by itself."""
    stop = asyncio.Event()
    placement = directory / "placement.json"
    async with Children(say) as children:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: children.hurry() if stop.is_set() else stop.set())
        for command in _commands(prepared, directory, placement, ports):
            await children.start(command)
        ended = asyncio.create_task(children.first_end())
        stopped = asyncio.create_task(stop.wait())
        announced = asyncio.create_task(_announce(prepared, placement, ports, say))
        try:
            await asyncio.wait((ended, stopped, announced), return_when=asyncio.FIRST_COMPLETED)
            if announced.done():
                announced.result()
                await asyncio.wait((ended, stopped), return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                raise CannotBeDone(_why(ended.result(), placement))
            say("uellm", "ending after the requests in progress; press Ctrl-C again to end at once")
        finally:
            for task in (ended, stopped, announced):
                task.cancel()


def _commands(prepared: Prepared, directory: Path, placement: Path, ports: Ports) -> tuple[ChildCommand, ChildCommand]:
    files = prepared.write(directory)
    inherited = {**os.environ, "PYTHONUNBUFFERED": "1"}
    theirs = {each.name: each.value for each in prepared.service.spec.engine.env}
    engine_environment = {
        **inherited,
        **theirs,
        "NVIDIA_VISIBLE_DEVICES": ",".join(prepared.plan.devices),
        "POD_NAME": prepared.service.name,
        "NODE_NAME": prepared.plan.nodes[0],
    }
    launcher = [sys.executable, "-m", "uellm.launcher", "--plan", str(files.plan), "--devices", str(files.devices)]
    launcher += ["--placement", str(placement), "--listen", f"{LOOPBACK}:{ports.engine}"]
    sidecar = [sys.executable, "-m", "uellm.cli.main", "sidecar", "--listen", f"{LOOPBACK}:{ports.service}"]
    sidecar += ["--engine", f"http://{LOOPBACK}:{ports.engine}", "--config", str(files.sidecar)]
    sidecar += ["--engine-config", str(files.engine)]
    sidecar += ["--metrics-listen", f"{LOOPBACK}:{ports.metrics}"]
    return (
        ChildCommand(SIDECAR, sidecar, {**inherited, PLACEMENT_VARIABLE: str(placement)}),
        ChildCommand(ENGINE, launcher, engine_environment),
    )


async def _announce(prepared: Prepared, placement: Path, ports: Ports, say: Say) -> None:
    """Wait until the engine serves, then print endpoint and devices. Raises CannotBeDone after the startup timeout."""
    started_s = time.monotonic()
    timeout_s = prepared.service.spec.engine.startup_timeout_s
    url = f"http://{LOOPBACK}:{ports.metrics}{ENGINE_READY_PATH}"
    while not await asyncio.to_thread(_answers, url):
        if time.monotonic() - started_s > timeout_s:
            raise CannotBeDone(f"the engine does not serve after spec.engine.startupTimeout, {timeout_s:g} s")
        await asyncio.sleep(READY_POLL_S)
    bound = _read(placement)
    layers = ",".join(str(count) for count in bound.layers)
    devices = ", ".join(device.product or device.uuid for device in bound.devices)
    say("uellm", f"ready after {time.monotonic() - started_s:.0f} s, layers {layers} on {devices}")
    say("uellm", f"endpoint  http://{LOOPBACK}:{ports.service}/v1  model {prepared.service.served_name}")
    say("uellm", f"metrics   http://{LOOPBACK}:{ports.metrics}/metrics")


def _answers(url: str) -> bool:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2.0) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _why(ended: Ended, placement: Path) -> str:
    error = _read(placement).error if ended.name == ENGINE else None
    if error:
        return f"the engine could not be launched: {error.reason}: {error.message}"
    return f"the {ended.name} ended {ended.how}; its last lines are above"


def _read(placement: Path) -> PlacementReport:
    """The launcher's report; an empty one until it exists."""
    try:
        return PlacementReport.from_dict(json.loads(placement.read_text()))
    except (OSError, ValueError):
        return PlacementReport()
