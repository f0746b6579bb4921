"""The launcher's command line: bind and become the engine, with a parent that watches it; or drain."""

from __future__ import annotations

import argparse
import hashlib
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from uellm.errors import PlanError, UellmError
from uellm.launcher import probes, report
from uellm.launcher.adapters import AdapterDownloads
from uellm.launcher.drain import TIMEOUT_S, drain
from uellm.launcher.engine_version import check_engine, check_streamer
from uellm.launcher.group.membership import follows
from uellm.launcher.group.watch import hand_over
from uellm.launcher.init import stand_by
from uellm.placement_report import GROUP_BROKEN, GROUP_INCOMPLETE, LaunchFailure
from uellm.pod_interface import (
    DEVICES_DIRECTORY,
    DEVICES_FILE,
    ENGINE_PORT,
    GROUP_MASTER_PORT,
    GROUP_PORT,
    METRICS_PORT,
    PLACEMENT_FILE,
    PLAN_FILE,
    REVISION_DIRECTORY,
)

GROUP_TIMEOUT_S = 600.0
REFUSED_PAUSE = 0.05
"""Of the time in which a group forms: how long refused pods are kept. LeaderWorkerSet starts a group anew as soon as a
container ends, and it would be refused again every few seconds."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns only where there is no engine to become: 1 it cannot be launched, 2 bad command line."""
    args = _parser().parse_args(argv)
    if args.drain:
        return drain(args.drain, args.placement.parent, timeout_s=args.drain_timeout)
    environment = dict(os.environ)
    channel = stand_by(serve=_probes(args), follows=follows(environment))
    plan_hash, began_s = "", time.monotonic()
    try:
        content = _read(args.plan)
        plan_hash = hashlib.sha256(content).hexdigest()
        _launch(content, plan_hash, args, environment, channel)
    except UellmError as error:
        reason, message = error.reason if isinstance(error, PlanError) else "BadPlan", str(error)
    except OSError as error:
        reason, message = "LaunchFailed", str(error)
    report.fail(args.placement, report.failed(environment, plan_hash, LaunchFailure(reason, message)))
    waited = reason == GROUP_INCOMPLETE and time.monotonic() - began_s >= args.group_timeout
    if follows(environment) is not None and reason != GROUP_BROKEN and not waited:
        time.sleep(args.group_timeout * REFUSED_PAUSE)
    return 1


def _launch(
    content: bytes,
    plan_hash: str,
    args: argparse.Namespace,
    environment: dict[str, str],
    channel: socket.socket | None,
) -> None:
    """Become the engine. Raises PlanError, or OSError where the engine cannot be executed."""
    try:
        # numpy comes with the engine's image. Imported here, a missing one can be reported, and `--drain` needs none.
        import numpy  # noqa: F401

        from uellm.launcher.bind import announce, prepare, read_advice
        from uellm.launcher.group.agree import GroupOptions, agree
        from uellm.planner.handover.plan_document import PlanDocument
    except ModuleNotFoundError as error:
        if error.name != "numpy":
            raise
        raise PlanError(
            "NumpyMissing",
            f"numpy is not installed for {sys.executable}, and the launcher places the layers with it: use vLLM's own "
            "image, or add numpy to yours",
        ) from error
    document = PlanDocument.from_json(content, str(args.plan))
    advice = read_advice(args.devices)
    if document.nodes > 1:
        options = GroupOptions(args.group_timeout, args.group_port, args.group_master_port)
        agreed = agree(document, advice, plan_hash, listen=args.listen, environment=environment, options=options)
        found, binding, command = agreed.found, agreed.binding, agreed.command
        hand_over(channel, agreed.connections)
    else:
        found, binding, command = prepare(document, advice, listen=args.listen, environment=environment)
        check_engine(command.argv)
    check_streamer(document.engine.model)
    report.write(args.placement, report.started(document, advice, plan_hash, found, binding, command))
    announce(found, binding, command)
    os.execve(command.argv[0], command.argv, dict(command.environment))


def _probes(args: argparse.Namespace) -> Callable[[], None] | None:
    if args.probe_port is None:
        return None
    return partial(probes.serve, args.probe_port, args.listen, args.sidecar, AdapterDownloads(args.placement.parent))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PlanError("BadPlan", f"{path}: {error.strerror}: is the service's ConfigMap mounted there?") from error


def _listen(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{value!r} is not HOST:PORT")
    return host, int(port)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launcher", description="Binds a plan to this container's devices; runs vLLM")
    parser.add_argument(
        "--plan", type=Path, default=Path(REVISION_DIRECTORY, PLAN_FILE), help="plan.json of the ConfigMap"
    )
    parser.add_argument(
        "--devices",
        type=Path,
        default=Path(DEVICES_DIRECTORY, DEVICES_FILE),
        help="devices.json, facts of single GPUs; it may be missing",
    )
    parser.add_argument("--placement", type=Path, default=Path(PLACEMENT_FILE), help="report to write")
    parser.add_argument(
        "--listen", type=_listen, default=("127.0.0.1", ENGINE_PORT), metavar="HOST:PORT", help="the engine's"
    )
    parser.add_argument("--probe-port", type=int, metavar="PORT", help="answer the kubelet's probes of the engine here")
    parser.add_argument(
        "--sidecar",
        type=_listen,
        default=("127.0.0.1", METRICS_PORT),
        metavar="HOST:PORT",
        help="the sidecar's metrics port",
    )
    parser.add_argument(
        "--group-timeout",
        type=float,
        default=GROUP_TIMEOUT_S,
        metavar="SECONDS",
        help="how long the pods of a replica that spans nodes wait for each other",
    )
    parser.add_argument("--group-port", type=int, default=GROUP_PORT, metavar="PORT", help="where they agree")
    parser.add_argument(
        "--group-master-port", type=int, default=GROUP_MASTER_PORT, metavar="PORT", help="where their engines meet"
    )
    parser.add_argument("--drain", metavar="URL", help="ask the sidecar at URL to drain, wait, and do nothing else")
    parser.add_argument(
        "--drain-timeout", type=float, default=TIMEOUT_S, metavar="SECONDS", help="how long to wait for it"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
