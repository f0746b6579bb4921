"""`uellm device-plugin --simulate PATH --node NAME`: offers simulated GPUs to the kubelet, as a device plugin.

Its pod's requirements (a DaemonSet of its own, off by default; only for nodes with simulated GPUs):

    args      device-plugin --simulate /etc/uellm/simulate --node $(NODE_NAME)
              [--plugin-dir /var/lib/kubelet/device-plugins]
              [--pod-resources /var/lib/kubelet/pod-resources/kubelet.sock]
              A node that the directory does not name advertises nothing; the process waits for its file to appear.
    env       NODE_NAME from fieldRef spec.nodeName.
    mounts    hostPath directory /var/lib/kubelet/device-plugins at the same path, read-write; the ConfigMap of the
              profiler at /etc/uellm/simulate, readOnly; with --pod-resources, /var/lib/kubelet/pod-resources, readOnly.
    security  runAsUser 0 (the directory belongs to root), runAsNonRoot false, drop ALL capabilities,
              allowPrivilegeEscalation false, readOnlyRootFilesystem true, RuntimeDefault.
    RBAC      none; automountServiceAccountToken false: it only talks to the kubelet.
    update    terminationGracePeriodSeconds 10; RollingUpdate with maxSurge 0 (one plugin per node at a time).

Devices keep running in their pods while the plugin is away; the kubelet then counts the resource as zero for new pods.
"""

from __future__ import annotations

import argparse
import os
from contextlib import AsyncExitStack
from pathlib import Path

from uellm.errors import BadInput
from uellm.hardware import GPU_RESOURCE
from uellm.profiler.deviceplugin import PLUGIN_DIR, DevicePluginServer
from uellm.profiler.podresources import PodResources
from uellm.profiler.process import log_to_stderr, run_until_signal
from uellm.profiler.simulated import SimulatedSource


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--simulate",
        metavar="PATH",
        required=True,
        help="description of simulated GPUs, or a directory of <node>.yaml files",
    )
    parser.add_argument("--node", default=os.environ.get("NODE_NAME", ""), help="the node's name (default: $NODE_NAME)")
    parser.add_argument(
        "--plugin-dir", default=PLUGIN_DIR, help=f"the kubelet's device-plugin directory (default: {PLUGIN_DIR})"
    )
    parser.add_argument(
        "--resource", default=GPU_RESOURCE, help=f"extended resource to offer (default: {GPU_RESOURCE})"
    )
    parser.add_argument(
        "--pod-resources",
        metavar="SOCKET",
        help="the kubelet's PodResources socket: GPUs that claims (DRA) have are not offered (default: not asked)",
    )


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM. Raises BadInput for bad arguments or a bad description."""
    if Path(args.simulate).is_dir() and not args.node:
        raise BadInput("--node", "is required for a directory of descriptions (or the variable NODE_NAME)")
    if not Path(args.plugin_dir).is_dir():
        raise BadInput("--plugin-dir", f"{args.plugin_dir} is not a directory: mount the kubelet's directory there")
    log_to_stderr()
    run_until_signal(_offer(args))
    return 0


async def _offer(args: argparse.Namespace) -> None:
    source = SimulatedSource(args.simulate, args.node)
    async with AsyncExitStack() as stack:
        kubelet = None
        if args.pod_resources:
            kubelet = PodResources(args.pod_resources)
            stack.push_async_callback(kubelet.close)
        await DevicePluginServer(
            source.sample, plugin_dir=args.plugin_dir, resource=args.resource, kubelet=kubelet
        ).run()
