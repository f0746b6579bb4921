"""`uellm gateway`: one endpoint for all LLMServices.

Its pod's requirements:

    args     gateway --listen :8080 --metrics-listen :8081
    RBAC     uellm.io llmservices: list, watch, patch (of one annotation); discovery.k8s.io endpointslices: list, watch
    probes   GET /livez, GET /readyz on the metrics port
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from uellm.cli.arguments import positive
from uellm.gateway.fleet import Fleet
from uellm.gateway.holding import HOLD_S, HoldLimits
from uellm.gateway.process import Gateway, GatewayOptions, serve
from uellm.gateway.telemetry import ACCESS_LOG
from uellm.gateway.view import FleetView
from uellm.http.loop import run as run_loop
from uellm.proxying.browsers import AllowedOrigins
from uellm.proxying.drain import GRACE_S
from uellm.proxying.process import Address, log_as_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="address for clients")
    parser.add_argument("--metrics-listen", metavar="HOST:PORT", help="address for metrics and probes")
    parser.add_argument(
        "--namespace",
        action="append",
        default=[],
        metavar="NAME",
        help="namespace whose services are served; repeatable (default: all)",
    )
    parser.add_argument(
        "--static", type=Path, metavar="FILE", help="file with services and their replicas, in place of a cluster"
    )
    parser.add_argument(
        "--kubeconfig", help="kubeconfig of the cluster (default: the pod's service account, else KUBECONFIG)"
    )
    parser.add_argument(
        "--tls", type=Path, metavar="DIRECTORY", help="directory with tls.crt and tls.key; clients then speak HTTPS"
    )
    parser.add_argument(
        "--api-keys",
        type=Path,
        metavar="DIRECTORY",
        help="directory with API keys that every request needs, in addition to the keys of its service",
    )
    parser.add_argument(
        "--allowed-origins",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="origin of web pages that may use the gateway, such as https://chat.example.com, or * for every one; "
        "repeatable (default: none)",
    )
    parser.add_argument(
        "--hold-seconds",
        type=positive,
        default=HOLD_S,
        metavar="SECONDS",
        help="how long a request waits for the first replica of its service, unless its class has a deadline "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--drain-seconds",
        type=positive,
        default=GRACE_S,
        metavar="SECONDS",
        help="how long a drain waits for requests in flight (default: %(default)g)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal. Raises BadInput, or CannotBeDone where an address is taken or no cluster is named."""
    options = GatewayOptions(
        listen=Address.parse(args.listen, "--listen"),
        metrics_listen=Address.parse(args.metrics_listen, "--metrics-listen") if args.metrics_listen else None,
        keys=args.api_keys,
        tls=args.tls,
        origins=AllowedOrigins.parse(args.allowed_origins, "--allowed-origins"),
        grace_s=args.drain_seconds,
        holding=HoldLimits(hold_s=args.hold_seconds),
    )
    log_as_json(ACCESS_LOG)
    run_loop(_serve(options, args))
    return 0


async def _serve(options: GatewayOptions, args: argparse.Namespace) -> None:
    if args.static is not None:
        from uellm.gateway.static_view import StaticView

        path: Path = args.static
        await serve(options, lambda fleet: StaticView(path, fleet), _announce)
        return
    from uellm.gateway.kube_view import KubeView
    from uellm.kube import Kube

    async with await Kube.connect(kubeconfig=args.kubeconfig) as kube:

        def view(fleet: Fleet) -> FleetView:
            return KubeView(kube, fleet, args.namespace)

        await serve(options, view, _announce)


def _announce(gateway: Gateway) -> None:
    logging.getLogger("uellm.gateway").info("serving on port %d, metrics %d", gateway.port, gateway.metrics_port)
