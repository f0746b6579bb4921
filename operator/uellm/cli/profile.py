"""`uellm profile`: shows this node's GPUs. YAML and JSON output can be passed to `uellm plan --profiles`.

Output `class` is the GPUNodeClass of nodes like this one, for `kubectl apply -f -`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from uellm.api import parse_node_class
from uellm.api.gpunodeclass import LABEL_KEY, LABEL_VALUE
from uellm.api.node_class_facts import class_document, class_name
from uellm.api.scalars import DNS_SUBDOMAIN
from uellm.cli.arguments import add_output
from uellm.errors import BadInput
from uellm.hardware import Node
from uellm.profiler import podresources
from uellm.profiler.allocations import allocations
from uellm.profiler.device_names import Names
from uellm.profiler.nvml import NVMLSource
from uellm.profiler.process import now
from uellm.profiler.sample import NVML, SIMULATED, Sample
from uellm.profiler.simulated import SimulatedSource, described_name
from uellm.profiler.status import Seen, compose
from uellm.profiler.table import table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--simulate", metavar="PROFILE.yaml", help="description of simulated GPUs, instead of this machine's"
    )
    parser.add_argument("--node", help="the node's name (default: the description's, else this machine's)")
    add_output(parser, "table", "yaml", "json", "class")
    parser.add_argument(
        "--class-name", metavar="NAME", help="with -o class: its name (default: made from the products)"
    )
    parser.add_argument(
        "--label",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="with -o class: a label that its nodes carry, such as their instance type (may be given several times)",
    )
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="with -o class: its nodes have simulated GPUs (default: real ones, also where --simulate describes them)",
    )


def run(args: argparse.Namespace) -> int:
    """Observe once and print. Raises CannotBeDone if there is no GPU, BadInput for a bad description."""
    node = args.node or (args.simulate and Path(args.simulate).is_file() and described_name(args.simulate))
    node = node or socket.gethostname()
    source = SimulatedSource(args.simulate, node) if args.simulate else NVMLSource()
    profile = _profile(node, source.sample(), described=bool(args.simulate))
    if args.output == "class":
        print(yaml.safe_dump(_class(profile, args), sort_keys=False), end="")
    elif args.output == "json":
        print(json.dumps(profile, indent=2))
    elif args.output == "yaml":
        print(yaml.safe_dump(profile, sort_keys=False), end="")
    else:
        print(table(profile))
    return 0


def _profile(node: str, sample: Sample, *, described: bool) -> dict[str, Any]:
    here = not described and Path(podresources.SOCKET).exists()
    pods = asyncio.run(_pods(sample)) if here else {}
    time = now()
    return {
        "apiVersion": "uellm.io/v1alpha1",
        "kind": "GPUNodeProfile",
        "metadata": {"name": node},
        "status": compose(Seen(sample, pods), {}, time, observed_at=time),
    }


def _class(profile: dict[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    node = replace(Node.from_profile(profile), source=SIMULATED if args.simulated else NVML)
    if args.class_name is not None and not re.fullmatch(DNS_SUBDOMAIN, args.class_name):
        raise BadInput("--class-name", f"{args.class_name!r} is not a name of lower-case letters, digits, '-' and '.'")
    labels = dict(map(_label, args.label))
    document = class_document(node, args.class_name or class_name(node), labels)
    made = document["spec"]["labels"]
    for key, value in labels.items():
        if made[key] != value:
            raise BadInput("--label", f"{key} is {made[key]!r} by the GPUs: leave it out")
    parse_node_class(document)
    return document


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not re.fullmatch(LABEL_KEY, key) or not equals or not re.fullmatch(LABEL_VALUE, value):
        raise BadInput("--label", f"{text!r} is not KEY=VALUE, such as node.kubernetes.io/instance-type=p5.48xlarge")
    return key, value


async def _pods(sample: Sample) -> dict[str, str]:
    """The pod that has each device, by namespace and name; empty if the kubelet does not answer."""
    kubelet = podresources.PodResources()
    try:
        return dict(allocations(Names(sample).held(await kubelet.held()), (), {}).pod_uids)
    except podresources.KubeletSilent:
        return {}
    finally:
        await kubelet.close()
