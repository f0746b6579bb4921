"""`uellm sidecar`: the SLO-ordered queue in front of an engine."""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

from uellm.cli.arguments import not_negative
from uellm.http.loop import run as run_loop
from uellm.pod_interface import PLACEMENT_VARIABLE, STATE_VARIABLE
from uellm.proxying.drain import GRACE_S
from uellm.proxying.process import Address, log_as_json
from uellm.sidecar.engine.connection import engine_address
from uellm.sidecar.process import Sidecar, SidecarOptions, serve
from uellm.sidecar.telemetry.access_log import ACCESS_LOG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--listen", required=True, metavar="HOST:PORT", help="address for clients")
    parser.add_argument(
        "--engine", required=True, metavar="URL", help="address of the engine, such as http://127.0.0.1:8001"
    )
    parser.add_argument(
        "--config",
        required=True,
        type=Path,
        metavar="FILE",
        help="configuration file; changes take effect while it runs",
    )
    parser.add_argument(
        "--engine-config",
        type=Path,
        metavar="FILE",
        help="file with this pod's model, engine and API keys, in place of those sections of the configuration file",
    )
    parser.add_argument(
        "--engine-parent", metavar="URL", help="address of the engine's parent process, which downloads LoRA adapters"
    )
    parser.add_argument(
        "--metrics-listen", metavar="HOST:PORT", help="address for metrics, probes, placement report and drain"
    )
    parser.add_argument(
        "--drain-seconds",
        type=not_negative,
        default=GRACE_S,
        metavar="SECONDS",
        help=f"how long a drain waits for requests in flight (default {GRACE_S:g})",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until a signal."""
    placement, state = os.environ.get(PLACEMENT_VARIABLE), os.environ.get(STATE_VARIABLE)
    options = SidecarOptions(
        listen=Address.parse(args.listen, "--listen"),
        engine=engine_address(args.engine),
        config=args.config,
        engine_parent=engine_address(args.engine_parent, "--engine-parent") if args.engine_parent else None,
        engine_config=args.engine_config,
        metrics_listen=Address.parse(args.metrics_listen, "--metrics-listen") if args.metrics_listen else None,
        placement=Path(placement) if placement else None,
        state=Path(state) if state else None,
        grace_s=args.drain_seconds,
    )
    log_as_json(ACCESS_LOG)
    run_loop(serve(options, _announce))
    return 0


def _announce(sidecar: Sidecar) -> None:
    logging.getLogger("uellm.sidecar").info("serving on port %d, metrics %d", sidecar.port, sidecar.metrics_port)
