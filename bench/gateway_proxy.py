"""What the gateway costs, beside nginx with `proxy_buffering off`: same load, same upstream, in turn.

    python bench/gateway_proxy.py [--json FILE] [--seconds 5] [--rounds 3]

    event of ROUTE    256 streams without end, as real vLLM sent them on that route, an event each 50 ms on each: CPU
                      time of the proxy's process for one event
    stream of N       32 clients, one streamed chat of N events after the other: CPU time for one
    short             32 clients, one short answer after the other: CPU time for one
    first byte        one client, one short answer after the other: what the proxy adds to the p50 until the first byte
    .. of 2           the same with two replicas, so that the prompt is read and one is chosen
    .. to 4           the same for 4 clients. The engine answers at once and so the gateway's core is never idle: what
                      is added is at least four times the processor time of a request

The TARGET of a CPU time is a multiple of nginx's; that of the first byte is milliseconds on top of the p50 of the
straight way. Ways take turns; a figure is the median over the rounds, a ratio or difference the median of those within
each round. CPU time is the kernel's for the proxy's process alone. All of it holds on a quiet machine only. nginx comes
from Debian: apt-get install nginx-light. Where it is missing, the rest is measured without it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from sidecar_load import command
from sidecar_load.upstream import COMPLETION, PLAYED, RECORDED
from sidecar_load.ways import NO_NGINX, Way, gateway, nginx, upstream
from sidecar_proxy import ANSWER, EVENT, FIRST, STREAMS, loaded

from uellm.text import aligned

CLIENTS, FEW = 32, 4


@dataclass(frozen=True)
class Case:
    """A row of the table."""

    name: str
    figure: str
    target: float | None
    measure: Callable[[Way, float], dict[str, float]]
    ours: str = "gateway"


CASES = (
    *(Case(f"event of {name}", EVENT, 1.3, loaded(path, STREAMS)) for name, path in PLAYED.items()),
    Case("stream of 4", ANSWER, None, loaded("/v1/chat/completions?events=4", CLIENTS)),
    Case("stream of 64", ANSWER, None, loaded("/v1/chat/completions?events=64", CLIENTS)),
    Case("short", ANSWER, None, loaded(COMPLETION, CLIENTS)),
    Case("short of 2", ANSWER, None, loaded(COMPLETION, CLIENTS), "gateway2"),
    Case("first byte", FIRST, 1.0, loaded(COMPLETION, 1)),
    Case("first byte of 2", FIRST, 1.0, loaded(COMPLETION, 1), "gateway2"),
    Case("first byte to 4", FIRST, 1.0, loaded(COMPLETION, FEW)),
    Case("first byte of 2 to 4", FIRST, 1.0, loaded(COMPLETION, FEW), "gateway2"),
)


def compared(case: Case, ways: dict[str, Way], seconds: float, rounds: int) -> dict[str, Any]:
    """The ways in turn, so often: medians by way, and what the gateway costs beside the reference of the target."""
    timed = case.figure == FIRST
    names = [name for name in ("straight", "nginx", case.ours) if name in ways and (timed or name != "straight")]
    runs = [{name: case.measure(ways[name], seconds)[case.figure] for name in names} for _ in range(rounds)]
    row: dict[str, Any] = {"case": case.name, "figure": case.figure, "target": case.target}
    for name in names:
        row["gateway" if name == case.ours else name] = statistics.median(run[name] for run in runs)
    if timed:
        row["cost"] = statistics.median(run[case.ours] - run["straight"] for run in runs)
    elif "nginx" in names:
        row["cost"] = statistics.median(run[case.ours] / run["nginx"] for run in runs)
    return row


def results(seconds: float, rounds: int) -> dict[str, Any]:
    """All the figures."""
    models = sorted({each["request"].get("model") or "m" for each in RECORDED.values()} - {"m"})
    with ExitStack() as stack:
        straight, other = stack.enter_context(upstream()), stack.enter_context(upstream())
        found = {
            "straight": straight,
            "nginx": stack.enter_context(nginx(straight.port)),
            "gateway": stack.enter_context(gateway(models, straight.port)),
            "gateway2": stack.enter_context(gateway(models, straight.port, other.port)),
        }
        if found["nginx"] is None:
            print(NO_NGINX, file=sys.stderr)
        ways = {name: way for name, way in found.items() if way is not None}
        return {"cases": [compared(case, ways, seconds, rounds) for case in CASES]}


def table(found: dict[str, Any]) -> None:
    """Print them."""
    lines = [["", "STRAIGHT", "NGINX", "GATEWAY", "COST", "TARGET"]]
    lines += [_line(row) for row in found["cases"]]
    print("\n".join(aligned(lines)))


def _line(row: dict[str, Any]) -> list[str]:
    timed = row["figure"] == FIRST
    unit, form = ("ms", "{:+.2f} ms") if timed else ("us", "{:.2f}x")
    values = [f"{row[way]:.2f} {unit}" if way in row else "" for way in ("straight", "nginx", "gateway")]
    cost, target = (form.format(row[name]) if row.get(name) is not None else "" for name in ("cost", "target"))
    return [row["case"], *values, cost, target]


if __name__ == "__main__":
    sys.exit(command.run("gateway_proxy", __doc__, results, table))
