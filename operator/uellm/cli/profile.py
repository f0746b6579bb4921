"""`uellm profile`: shows this node's GPUs. YAML and JSON output can be passed to `uellm plan --profiles`."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import yaml

from uellm.cli.arguments import add_output
from uellm.profiler import podresources
from uellm.profiler.allocations import allocations
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.process import now
from uellm.profiler.sample import Sample
from uellm.profiler.simulated import SimulatedSource, described_name
from uellm.profiler.status import Seen, compose
from uellm.profiler.table import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--simulate", metavar="PROFILE.yaml", help="description of simulated GPUs, instead of this machine's"
    )
    parser.add_argument("--node", help="the node's name (default: the description's, else this machine's)")
    add_output(parser, "table", "yaml", "json")


def run(args: argparse.Namespace) -> int:
    """Observe once and print. Raises CannotBeDone if there is no GPU, BadInput for a bad description."""
    node = args.node or (args.simulate and Path(args.simulate).is_file() and described_name(args.simulate))
    node = node or socket.gethostname()
    source = SimulatedSource(args.simulate, node) if args.simulate else NVMLSource()
    profile = _profile(node, source.sample(), described=bool(args.simulate))
    if args.output == "json":
        print(json.dumps(profile, indent=2))
    elif args.output == "yaml":
        print(yaml.safe_dump(profile, sort_keys=False), end="")
    else:
        print(table(profile))
    return 0


def _profile(node: str, sample: Sample, *, described: bool) -> dict[str, Any]:
    here = not described and Path(podresources.SOCKET).exists()
    pods = asyncio.run(_pods()) if here else {}
    time = now()
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": node},
        "status": compose(Seen(sample, pods), {}, time, observed_at=time),
    }


async def _pods() -> dict[str, str]:
    """The pod that has each device, by namespace and name; empty if the kubelet does not answer."""
    kubelet = podresources.PodResources()
    try:
        return dict(allocations(await kubelet.held(), (), {}).pod_uids)
    except podresources.KubeletSilent:
        return {}
    finally:
        await kubelet.close()
