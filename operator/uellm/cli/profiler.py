"""`uellm profiler --node NAME`: the DaemonSet's process. It keeps the node's GPUNodeProfile up to date until SIGTERM.

Its pod's requirements:

    args      profiler --node $(NODE_NAME) [--simulate /etc/uellm/simulate] [--measurements DIR] [--interval 10]
              [--network-listen :8009 --network-peers NAMESPACE/LABELS]
              `--simulate` takes a directory of `<nodeName>.yaml` files (the ConfigMap) or one file. A node without a
              file in the directory is measured by NVML. If it has no driver either, the process logs that once and
              tries again every interval. It neither crash-loops nor writes a profile for a node without GPUs.
    env       NODE_NAME from fieldRef spec.nodeName. On real GPU nodes NVIDIA_VISIBLE_DEVICES=all and
              NVIDIA_DRIVER_CAPABILITIES=utility. Never
              NVIDIA_MIG_MONITOR_DEVICES: with it, NVIDIA's runtime refuses containers without CAP_SYS_ADMIN.
              No `nvidia.com/gpu` request: the profiler observes all GPUs and allocates none.
    pod       runtimeClassName nvidia on real GPU nodes (a value of the chart; none in the dev cluster), tolerations for
              GPU taints, terminationGracePeriodSeconds 10.
    mounts    hostPath directory /var/lib/kubelet/pod-resources at the same path, readOnly (the directory, not the
              socket: a restarted kubelet makes a new one); the directory of the node into which measuring pods write,
              readOnly; the ConfigMap at /etc/uellm/simulate; no writable path.
    security  runAsUser 0 (the kubelet's socket belongs to root), runAsNonRoot false, drop ALL capabilities,
              allowPrivilegeEscalation false, readOnlyRootFilesystem true, RuntimeDefault; not privileged.
    RBAC      uellm.io gpunodeprofiles: get, list, watch, create, patch; gpunodeprofiles/status: get, patch;
              core nodes: get, patch (labels); core pods: list (field selector spec.nodeName, for the pods' UIDs;
              label selector, for the addresses of the other profilers);
              resource.k8s.io resourceslices: list (what DRA drivers hand out on the node);
              events.k8s.io events: create in the namespace default.
    probes    none: on a fatal error the process exits with status 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from uellm import __version__
from uellm.cli.arguments import add_log_level, listen_address, metrics_listen
from uellm.errors import BadInput
from uellm.kube import Kube
from uellm.metrics.server import WebListener, metrics_app
from uellm.profiler.keeper import Keeper, Periods
from uellm.profiler.measured import MeasurementFile
from uellm.profiler.metrics import ProfilerMetrics
from uellm.profiler.network.gate import NetworkGate
from uellm.profiler.network.keeping import NetworkKeeper
from uellm.profiler.network.sink import Sink
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.podresources import SOCKET, PodResources
from uellm.profiler.process import log_to_stderr, run_until_signal
from uellm.profiler.sample import NoGPUs, Source
from uellm.profiler.simulated import SimulatedSource
from uellm.profiler.store import Store

METRICS_LISTEN = ":8004"
NETWORK_LISTEN = ":8009"

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--node", default=os.environ.get("NODE_NAME"), help="the node's name (default: $NODE_NAME)")
    parser.add_argument(
        "--simulate", metavar="PATH", help="description of simulated GPUs, or a directory of <node>.yaml files"
    )
    parser.add_argument(
        "--measurements", metavar="DIR", type=Path, help="directory into which measuring pods write (default: none)"
    )
    parser.add_argument(
        "--measuring-namespace",
        metavar="NAMESPACE",
        default="",
        help="namespace of measuring pods: the GPUs that these have count as free (default: none)",
    )
    parser.add_argument(
        "--network-listen",
        metavar="[HOST]:PORT",
        help=f"measure the network to other GPU nodes, and listen there, such as {NETWORK_LISTEN}; all profilers have "
        "the same port (default: do not)",
    )
    parser.add_argument(
        "--network-peers",
        metavar="NAMESPACE/LABELS",
        help="namespace and labels (`key=value,...`) of the pods of all profilers; needed with --network-listen",
    )
    parser.add_argument(
        "--interval",
        type=float,
        default=Periods.interval_s,
        help="seconds between observations of the GPUs (default: %(default)g)",
    )
    parser.add_argument(
        "--pod-resources",
        default=SOCKET,
        metavar="SOCKET",
        help="the kubelet's PodResources socket (default: %(default)s)",
    )
    parser.add_argument(
        "--metrics-listen", metavar="[HOST]:PORT", help=f"address of /metrics, such as {METRICS_LISTEN} (default: none)"
    )
    add_log_level(parser)
    parser.add_argument(
        "--kubeconfig", help="kubeconfig of the cluster (default: the pod's service account, else KUBECONFIG)"
    )


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM. Raises BadInput for bad arguments or a bad description, CannotBeDone on a fatal error."""
    if not args.node:
        raise BadInput("--node", "is required (or the variable NODE_NAME)")
    if not args.interval > 0:
        raise BadInput("--interval", f"must be more than 0 seconds, not {args.interval:g}")
    if (args.network_listen is None) != (args.network_peers is None):
        raise BadInput("--network-listen", "goes with --network-peers: give both, or none")
    if args.network_peers is not None and not re.fullmatch(r"[^/=]+/[^=]+=.*", args.network_peers):
        raise BadInput("--network-peers", f"must be NAMESPACE/KEY=VALUE,..., not {args.network_peers!r}")
    source = _source(args)
    log_to_stderr(args.log_level)
    run_until_signal(_keep(args, source))
    return 0


def _source(args: argparse.Namespace) -> Source:
    if args.simulate is None:
        return NVMLSource()
    described = SimulatedSource(args.simulate, args.node)
    # A bad description at the start is fatal; one that becomes bad later is reported as a condition.
    with suppress(NoGPUs):  # the directory has no file for this node
        described.sample()
    return SimulatedSource(args.simulate, args.node, otherwise=NVMLSource())


@contextmanager
def _network(args: argparse.Namespace, store: Store) -> Iterator[NetworkKeeper]:
    namespace, _, labels = args.network_peers.partition("/")
    host, port = listen_address(args.network_listen, "--network-listen", NETWORK_LISTEN)
    gate = NetworkGate()
    with closing(Sink(host, port, gate)) as sink:
        yield NetworkKeeper(args.node, sink, gate, lambda: store.profilers(namespace, labels))


async def _keep(args: argparse.Namespace, source: Source) -> None:
    logger.info("uellm profiler %s keeps the profile of node %s", __version__, args.node)
    metrics = ProfilerMetrics(args.node)
    kubelet = PodResources(args.pod_resources)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kubelet.close)
        if (address := metrics_listen(args.metrics_listen, METRICS_LISTEN)) is not None:
            await stack.enter_async_context(WebListener(metrics_app(metrics.registry), *address, purpose="metrics"))
        kube = await stack.enter_async_context(
            await Kube.connect(kubeconfig=args.kubeconfig, observe=metrics.api_calls.observe)
        )
        periods = replace(Periods(), interval_s=args.interval)
        measurements = MeasurementFile(args.measurements)
        store = Store(kube, args.node)
        network = None if args.network_listen is None else stack.enter_context(_network(args, store))
        await Keeper(
            store,
            source,
            kubelet,
            metrics,
            measurements=measurements,
            measuring_namespace=args.measuring_namespace,
            network=network,
            periods=periods,
        ).run()
