from __future__ import annotations

import socket

import aiohttp
import pytest

from uellm.cli.arguments import listen_address
from uellm.controller.metrics import ControllerMetrics
from uellm.controller.probes import probes_app
from uellm.errors import BadInput, CannotBeDone
from uellm.metrics.server import WebListener, metrics_app


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:80", ("::", 80)),
        ("localhost:80", ("localhost", 80)),
        (":80", (None, 80)),
    ],
)
def test_a_host_of_either_family_or_none_is_read(text, address):
    assert listen_address(text, "--listen", ":80") == address


@pytest.mark.parametrize("text", ["80", "::1:80", "host", "host:", "host:x", "host:65536"])
def test_anything_else_is_refused_with_an_example(text):
    with pytest.raises(BadInput, match=r"--listen: .* is not HOST:PORT, \[IPV6\]:PORT or :PORT, such as :8080"):
        listen_address(text, "--listen", ":8080")


def has_ipv6() -> bool:
    with socket.socket(socket.AF_INET6) as probe:
        try:
            probe.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
async def test_probes_and_metrics_answer_on_a_machine_with_ipv6_only(unused_tcp_port):
    registry = ControllerMetrics().registry
    probes = WebListener(probes_app({}, lambda: True, registry), "::1", unused_tcp_port, purpose="probes")
    metrics = WebListener(metrics_app(registry), "::1", 0, purpose="metrics")
    async with probes, metrics, aiohttp.ClientSession() as client:
        for url in (f"http://[::1]:{unused_tcp_port}/healthz", f"http://[::1]:{metrics.port}/metrics"):
            async with client.get(url) as response:
                assert response.status == 200


async def test_a_taken_port_is_named_with_its_purpose(unused_tcp_port):
    app, address = metrics_app(ControllerMetrics().registry), ("127.0.0.1", unused_tcp_port)
    async with WebListener(app, *address, purpose="probes"):
        with pytest.raises(CannotBeDone, match=rf"metrics: .* port {unused_tcp_port}: .*; choose another"):
            await WebListener(metrics_app(ControllerMetrics().registry), *address, purpose="metrics").__aenter__()
