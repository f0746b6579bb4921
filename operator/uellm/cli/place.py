"""`uellm place`: only the layer-placement solver, on a JSON instance."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from uellm.cli.arguments import add_output
from uellm.cli.files import read_json
from uellm.placement_policies import PLACEMENT_POLICIES
from uellm.planner.placement.solver import OBJECTIVES, Instance, Placement, solve
from uellm.planner.spans import spans


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("instance", metavar="INSTANCE.json", help="the instance (- for standard input)")
    parser.add_argument(
        "--policy", default="HELR", metavar="POLICY", help=f"{', '.join(PLACEMENT_POLICIES)} (default: HELR)"
    )
    parser.add_argument(
        "--objective", default="latency", metavar="OBJECTIVE", help=f"{' or '.join(OBJECTIVES)} (default: latency)"
    )
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Solve and print. If nothing fits, the status is 1 and the reason is printed."""
    instance = Instance.from_dict(read_json(args.instance))
    placement = solve(instance, args.policy, args.objective)
    if args.output == "json":
        print(json.dumps(placement.to_dict()))
    elif placement.feasible:
        print(_table(instance, placement, args.objective))
    if not placement.feasible:
        print(f"uellm place: infeasible: {placement.reason}", file=sys.stderr)
    return 0 if placement.feasible else 1


def _table(instance: Instance, placement: Placement, objective: str) -> str:
    by_id: dict[str, Any] = {device.id: device for device in instance.devices}
    width = max(len("DEVICE"), *(len(name) for name in placement.order))
    lines = [f"STAGE  {'DEVICE':<{width}}  LAYERS  {'RANGE':>9}  MEMORY USED"]
    last = len(placement.order) - 1
    for stage, (name, (a, b)) in enumerate(zip(placement.order, spans(placement.layers), strict=True)):
        used = sum(instance.layer_bytes[a:b]) + sum(instance.layer_kv_bytes[a:b])
        used += instance.first_stage_bytes * (stage == 0) + instance.last_stage_bytes * (stage == last)
        room = by_id[name].memory_bytes - by_id[name].reserved_bytes
        share = f"{used / room:6.1%}" if room else "     -"
        lines.append(f"{stage:>5}  {name:<{width}}  {b - a:>6}  {f'{a}-{b - 1}':>9}  {share}")
    unused = sorted(set(by_id) - set(placement.order))
    if unused:
        lines.append(f"not used: {', '.join(unused)}")
    proof = (
        "optimal"
        if placement.optimal
        else f"not proven optimal; no placement costs less than {placement.lower_bound:g}"
    )
    lines.append(f"{'slowest stage' if objective == 'bottleneck' else 'cost'} {placement.cost:g} ({proof})")
    return "\n".join(lines)
