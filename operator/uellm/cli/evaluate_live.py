"""`uellm evaluate live`: replays a trace against real endpoints. The figures are those of `uellm evaluate queue`."""

from __future__ import annotations

import argparse
import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from uellm.cli.arguments import add_output, count, not_negative, positive, progress
from uellm.cli.evaluate_queue import check_plot, plot_if_wanted
from uellm.cli.files import read_yaml
from uellm.errors import BadInput
from uellm.evaluate.live import Endpoint, LiveOptions, replay_live, served_model
from uellm.evaluate.measure import measure
from uellm.evaluate.scenario import Job, draw_jobs, read_classes
from uellm.evaluate.table import table
from uellm.evaluate.traces import Trace, read_trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    some: dict[str, Any] = {"nargs": "+", "action": "extend"}
    parser.add_argument(
        "--url", required=True, metavar="NAME=URL", help="endpoints to compare, replayed in this order", **some
    )
    parser.add_argument("--trace", required=True, metavar="FILE", help="as for `uellm evaluate queue`")
    parser.add_argument("--classes", required=True, metavar="FILE", help="as for `uellm evaluate queue`")
    parser.add_argument("--speed", type=positive, metavar="X", help="factor on the arrival rate (default: 1)", **some)
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the classes (default: 1)", **some)
    parser.add_argument(
        "--limit", type=count, default=200, metavar="N", help="requests to replay (default: 200; 0: all)"
    )
    parser.add_argument(
        "--max-tokens-per-request",
        type=count,
        default=12_000,
        metavar="N",
        help="leave out requests with more tokens after --shrink (default: %(default)s)",
    )
    parser.add_argument(
        "--shrink",
        type=positive,
        default=1.0,
        metavar="X",
        help="divide every length by X, for a small engine (default: 1)",
    )
    parser.add_argument("--model", metavar="NAME", help="served model (default: the first that the endpoint lists)")
    parser.add_argument("--api-key", metavar="KEY", help="API key for all endpoints")
    parser.add_argument(
        "--priority", default=[], metavar="NAME", help="endpoints that get each deadline as vLLM's `priority`", **some
    )
    parser.add_argument(
        "--timeout-seconds",
        type=not_negative,
        default=600.0,
        metavar="S",
        help="timeout of a request (default: %(default)g)",
    )
    parser.add_argument(
        "--plot", metavar="FILE", help="also plot attainment and p99 latencies against the load, as .svg, .png or .pdf"
    )
    add_output(parser, "table", "json")


def run(args: argparse.Namespace) -> int:
    """Replay against each endpoint and print."""
    check_plot(args.plot)
    classes = read_classes(read_yaml(args.classes), Path(args.classes).name)
    trace = shrunk(read_trace(Path(args.trace)), args.shrink)
    if trace.complaint:
        progress(trace.complaint)
    drawn = {
        seed: draw_jobs(trace, classes, seed=seed, limit=args.limit or None, max_tokens=args.max_tokens_per_request)
        for seed in args.seed or [1]
    }
    document: dict[str, Any] = {"trace": trace.name, "requests": len(next(iter(drawn.values())))}
    document["results"] = asyncio.run(_replay_all(args, drawn))
    plot_if_wanted(document, args.plot)
    print(json.dumps(document) if args.output == "json" else table(document))
    return 0


async def _replay_all(args: argparse.Namespace, drawn: dict[int, list[Job]]) -> list[dict[str, Any]]:
    endpoints = [await _endpoint(text, args) for text in args.url]
    if len({endpoint.name for endpoint in endpoints}) < len(endpoints):
        raise BadInput("--url", "two endpoints have the same name")
    unknown = set(args.priority) - {endpoint.name for endpoint in endpoints}
    if unknown:
        raise BadInput("--priority", f"no --url names the endpoint {', '.join(sorted(unknown))}")
    results = []
    for speed in args.speed or [1.0]:
        pace = LiveOptions(speed, args.timeout_seconds)
        for seed, jobs in drawn.items():
            for endpoint in endpoints:
                outcome = await replay_live(jobs, endpoint, pace, progress)
                figures = measure(jobs, outcome)
                progress(f"{endpoint.name} at x{speed:g}, seed {seed}: {figures['attainment']['all']:.4f}")
                # The scheduler's cost is in the sidecar's own metrics.
                results.append(_entry(endpoint, speed, seed) | figures | {"schedulerMicroseconds": None})
    return results


def _entry(endpoint: Endpoint, speed: float, seed: int) -> dict[str, Any]:
    return {"policy": endpoint.name, "url": endpoint.url, "speed": speed, "seed": seed, "maxBatchedTokens": None}


async def _endpoint(text: str, args: argparse.Namespace) -> Endpoint:
    name, equals, url = text.partition("=")
    if not equals or not name or not url.startswith(("http://", "https://")):
        raise BadInput("--url", f"{text!r} must be NAME=URL, for example bare=http://127.0.0.1:8001")
    url = url.rstrip("/").removesuffix("/v1")
    model = args.model or await served_model(url, args.api_key)
    return Endpoint(name, url, model, args.api_key, name in args.priority)


def shrunk(trace: Trace, by: float) -> Trace:
    """The trace with every length divided, to at least one token. Shared prefixes are dropped if lengths change."""
    if by == 1:
        return trace
    requests = tuple(
        replace(
            request,
            prompt_tokens=max(1, round(request.prompt_tokens / by)),
            output_tokens=max(1, round(request.output_tokens / by)),
            blocks=(),
        )
        for request in trace.requests
    )
    return replace(trace, requests=requests)
