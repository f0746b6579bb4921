"""`uellm extender`: answers kube-scheduler's filter and prioritize calls for pods that have a plan.

Its pod's requirements (beside kube-scheduler, over loopback):

    args      extender --listen 127.0.0.1:8888 [--metrics-listen :8889] (only the scheduler may ask for decisions)
    RBAC      core pods and uellm.io gpunodeprofiles: list, watch (all namespaces)
    probes    GET /healthz (the process is alive), GET /readyz (its view of the cluster is complete and fresh)
    scheduler `extenders: [{urlPrefix: http://127.0.0.1:8888, filterVerb: filter, prioritizeVerb: prioritize,
              weight: 10, nodeCacheCapable: true, httpTimeout: 5s}]`, `percentageOfNodesToScore: 100`; and the flag
              `--pod-max-in-unschedulable-pods-duration=5s`. kube-scheduler retries a refused pod after an event that
              it watches, which does not include a changed GPUNodeProfile, or else after this time (default 5 min;
              checked every 30 s).
"""

from __future__ import annotations

import argparse
import logging
import sys

from uellm.cli.arguments import add_log_level, listen_address, metrics_listen
from uellm.extender.process import ExtenderOptions, serve
from uellm.http import loop
from uellm.planner.handover.annotation import refusal_on

DEFAULT_LISTEN = "127.0.0.1:8888"
METRICS_LISTEN = ":8889"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help=f"address to listen on (default: {DEFAULT_LISTEN})",
    )
    parser.add_argument(
        "--metrics-listen", metavar="[HOST]:PORT", help=f"address of /metrics, such as {METRICS_LISTEN} (default: none)"
    )
    parser.add_argument(
        "--kubeconfig", help="kubeconfig of the cluster (default: the pod's service account, else KUBECONFIG)"
    )
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until SIGTERM. Raises BadInput for a bad address, CannotBeDone where it is taken or no cluster is named."""
    options = ExtenderOptions(
        listen=listen_address(args.listen, "--listen", DEFAULT_LISTEN),
        metrics_listen=metrics_listen(args.metrics_listen, METRICS_LISTEN),
        kubeconfig=args.kubeconfig,
    )
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("uellm").setLevel(args.log_level)
    loop.run(serve(options, refusal_on))
    return 0
