"""`uellm dra-driver --simulate PATH --node NAME`: offers simulated GPUs to claims, like NVIDIA's DRA driver.

Its pod's requirements (a DaemonSet of its own, off by default; only for nodes with simulated GPUs):

    args      dra-driver --simulate /etc/uellm/simulate --node $(NODE_NAME) [--kubelet-dir /var/lib/kubelet]
              A node that the directory does not name publishes nothing; the process waits for its file to appear.
    env       NODE_NAME from fieldRef spec.nodeName.
    mounts    hostPath directories, at the same paths, read-write: plugins_registry and plugins/gpu.nvidia.com in the
              kubelet's directory, /var/run/cdi; readOnly: pod-resources there; the ConfigMap of the profiler at
              /etc/uellm/simulate, readOnly.
    security  runAsUser 0 (the directories belong to root), runAsNonRoot false, drop ALL capabilities,
              allowPrivilegeEscalation false, readOnlyRootFilesystem true, RuntimeDefault.
    RBAC      resource.k8s.io resourceslices: get, list, watch, create, patch, delete; resourceclaims: get;
              core nodes: get.
    update    terminationGracePeriodSeconds 10; RollingUpdate with maxSurge 0 (one driver per node at a time).

Claims keep their devices while the driver is away; new pods with claims wait for it.
"""

from __future__ import annotations

import argparse
import os
from contextlib import AsyncExitStack
from pathlib import Path

from uellm.cli.arguments import add_log_level
from uellm.errors import BadInput
from uellm.kube import Kube
from uellm.profiler.dra.claims import CDI_DIRECTORY, ClaimFiles
from uellm.profiler.dra.driver import DraServicer
from uellm.profiler.dra.server import KUBELET_DIRECTORY, DraServer
from uellm.profiler.dra.slice import NodeSlice
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
        "--kubelet-dir", default=KUBELET_DIRECTORY, metavar="DIR", help="the kubelet's directory (default: %(default)s)"
    )
    parser.add_argument(
        "--cdi-dir", default=CDI_DIRECTORY, metavar="DIR", help="directory of CDI files (default: %(default)s)"
    )
    add_log_level(parser)
    parser.add_argument(
        "--kubeconfig", help="kubeconfig of the cluster (default: the pod's service account, else KUBECONFIG)"
    )


def run(args: argparse.Namespace) -> int:
    """Run until SIGTERM. Raises BadInput for bad arguments or a bad description, CannotBeDone on a fatal error."""
    if not args.node:
        raise BadInput("--node", "is required (or the variable NODE_NAME)")
    for option, directory in (("--kubelet-dir", args.kubelet_dir), ("--cdi-dir", args.cdi_dir)):
        if not Path(directory).is_dir():
            raise BadInput(option, f"{directory} is not a directory: mount the node's directory there")
    log_to_stderr(args.log_level)
    run_until_signal(_drive(args))
    return 0


async def _drive(args: argparse.Namespace) -> None:
    source = SimulatedSource(args.simulate, args.node)
    kubelet = PodResources(f"{args.kubelet_dir}/pod-resources/kubelet.sock")
    async with AsyncExitStack() as stack:
        stack.push_async_callback(kubelet.close)
        kube = await stack.enter_async_context(await Kube.connect(kubeconfig=args.kubeconfig))
        servicer = DraServicer(kube, args.node, ClaimFiles(args.cdi_dir), kubelet)
        node_slice = NodeSlice(kube, args.node)
        await DraServer(source.sample, servicer, node_slice, kubelet_directory=args.kubelet_dir).run()
