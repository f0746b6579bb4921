"""`uellm cluster up|status|kubeconfig|down`."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from uellm_devcluster import cluster, local
from uellm_devcluster.addresses import MAX_NODES
from uellm_devcluster.errors import ClusterError
from uellm_devcluster.progress import say

_KWOK_MAX = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions and their options."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    up = actions.add_parser("up", help="start the cluster, or the parts of it that have ended")
    status = actions.add_parser("status", help="show which parts of the cluster run")
    kubeconfig = actions.add_parser("kubeconfig", help="print the path of the administrator's kubeconfig")
    down = actions.add_parser("down", help="end the cluster and remove everything of it")
    for action in (up, status, kubeconfig, down):
        action.add_argument("--name", help="name of the cluster (default: $UELLM_CLUSTER_NAME, else uellm)")
    status.add_argument("-o", "--output", choices=("table", "json"), default="table")
    _add_up_arguments(up)


def run(args: argparse.Namespace) -> int:
    """Run one action. Exit status 0: done; 1: it failed; 2: bad input."""
    actions = {"up": _up, "status": _status, "kubeconfig": _kubeconfig, "down": _down}
    try:
        return actions[args.action](args)
    except ClusterError as error:
        print(f"uellm cluster {args.action}: {error}", file=sys.stderr)
        return 1


def _add_up_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nodes", type=_count(1, MAX_NODES), default=2, help="number of real nodes (default: 2)")
    parser.add_argument(
        "--kwok",
        type=_count(0, _KWOK_MAX),
        default=0,
        metavar="N",
        help="number of further nodes, simulated by kwok (default: 0)",
    )
    parser.add_argument("--control-plane-only", action="store_true", help="no real nodes; needs no root")
    parser.add_argument("--provider", choices=("auto", "native", "kind"), default="auto")
    parser.add_argument(
        "--binaries",
        type=_directory,
        metavar="DIR",
        help="directory of binaries to use instead of downloading or building them",
    )
    parser.add_argument(
        "--images", type=_archives, default=[], metavar="PATH", help="image archive, or a directory of *.tar, to import"
    )
    parser.add_argument(
        "--mount",
        type=_mount,
        action="append",
        default=[],
        metavar="HOST:NODE",
        help="mount a directory of this machine into every node",
    )
    parser.add_argument("--foreground", action="store_true", help="wait, and end the cluster on Ctrl-C or SIGTERM")


def _up(args: argparse.Namespace) -> int:
    # `kill` must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    began_s = time.monotonic()
    state = cluster.up(
        name=args.name,
        provider=local.PROVIDER if args.control_plane_only else args.provider,
        nodes=args.nodes,
        kwok=args.kwok,
        mounts=args.mount,
        images=args.images,
        binaries=args.binaries,
        tied=args.foreground,
    )
    say(f"cluster {state.name!r} is up after {time.monotonic() - began_s:.1f} s")
    say(f"export KUBECONFIG={state.kubeconfig}")
    if args.foreground:
        _wait_then_end(args.name)
    return 0


def _wait_then_end(name: str | None) -> None:
    try:
        say("Ctrl-C ends it")
        # Not `signal.pause`: a signal that arrives just before it would not end it.
        while True:
            time.sleep(1.0)
    except KeyboardInterrupt:
        pass
    finally:
        cluster.down(name)


def _status(args: argparse.Namespace) -> int:
    status = cluster.status(args.name)
    print(json.dumps(status) if args.output == "json" else _table(status))
    return 0 if status["running"] else 1


def _table(status: dict[str, Any]) -> str:
    if not status["provider"]:
        return f"cluster {status['name']!r}: does not exist"
    word = "running" if status["running"] else "not all parts run"
    rows: list[tuple[str, ...]] = [("COMPONENT", "STATE")]
    rows += [(part["name"], f"pid {part['pid']}" if part["pid"] else "ended") for part in status["components"]]
    nodes: list[tuple[str, ...]] = [("NODE", "STATE", "ADDRESS")]
    nodes += [(node["name"], "Ready" if node["ready"] else "NotReady", node["address"]) for node in status["nodes"]]
    blocks = [_columns(block) for block in (rows, nodes) if len(block) > 1]
    title = f"cluster {status['name']!r} ({status['provider']}): {word}\nkubeconfig {status['kubeconfig']}"
    return "\n\n".join([title, *blocks])


def _columns(rows: list[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _kubeconfig(args: argparse.Namespace) -> int:
    print(cluster.kubeconfig(args.name))
    return 0


def _down(args: argparse.Namespace) -> int:
    began_s = time.monotonic()
    found = cluster.down(args.name)
    say(f"cluster down after {time.monotonic() - began_s:.1f} s" if found else "there was no such cluster")
    return 0


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _count(least: int, most: int) -> Any:
    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r}: give a number from {least} to {most}")
        return int(text)

    return parse


def _directory(text: str) -> Path:
    path = Path(text).absolute()
    if not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is no directory")
    return path


def _archives(text: str) -> list[Path]:
    path = Path(text).absolute()
    archives = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not all(archive.is_file() for archive in archives) or not archives:
        raise argparse.ArgumentTypeError(f"{text!r} is neither an archive nor a directory of *.tar")
    return archives


def _mount(text: str) -> tuple[str, str]:
    host, separator, node = text.partition(":")
    if not separator or not node.startswith("/") or ":" in node:
        raise argparse.ArgumentTypeError(f"{text!r}: give HOST:NODE, NODE an absolute path")
    return str(_directory(host).resolve()), node
