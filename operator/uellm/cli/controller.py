"""`uellm controller`: the operator's process."""

from __future__ import annotations

import argparse
import gc
import logging
import os
from pathlib import Path

from uellm.cli.arguments import add_log_level, listen_address
from uellm.controller.app import ControllerOptions, serve
from uellm.controller.lease import default_identity
from uellm.errors import BadInput
from uellm.http import loop
from uellm.reconcile.children import Images
from uellm.reconcile.engine_image import STOCK_ENGINE_IMAGE
from uellm.reconcile.measuring.settings import MeasuringSettings
from uellm.reconcile.model_claim import NodeCache

DEFAULT_HEALTH_LISTEN = ":8080"
REQUIRED_IMAGES = {
    "sidecar": "sidecar in the engine's pods",
    "launcher": "launcher in the engine's pods",
    "inspector": "pods that look models up, which is the operator's own",
}
MEASURING_VARIABLE = "UELLM_MEASURING"
GARBAGE_THRESHOLD = 20_000
"""New objects after which the youngest are looked at; 700 by default."""
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options. Each can also be set by an environment variable."""
    environment = os.environ.get
    parser.add_argument(
        "--engine-image",
        default=environment("UELLM_ENGINE_IMAGE") or STOCK_ENGINE_IMAGE,
        help="vLLM image for services that name none (UELLM_ENGINE_IMAGE; default: %(default)s)",
    )
    for role, what in REQUIRED_IMAGES.items():
        variable = f"UELLM_{role.upper()}_IMAGE"
        parser.add_argument(
            f"--{role}-image", default=environment(variable), help=f"image of the {what}; required ({variable})"
        )
    parser.add_argument(
        "--namespace",
        default=environment("UELLM_NAMESPACE"),
        help="namespace of the Lease (UELLM_NAMESPACE; default: the pod's own)",
    )
    parser.add_argument(
        "--health-listen",
        default=DEFAULT_HEALTH_LISTEN,
        metavar="[HOST]:PORT",
        help="address of /healthz, /readyz and /metrics (default: %(default)s, on every address of the machine)",
    )
    parser.add_argument(
        "--remember-node-classes",
        action="store_true",
        help="make a GPUNodeClass of every kind of GPU node that is seen: for clusters whose nodes come and go",
    )
    parser.add_argument(
        "--node-cache",
        metavar="PATH",
        help="directory of every GPU node for the models of services with spec.model.cache.nodeLocal (default: none)",
    )
    parser.add_argument(
        "--gateway-namespaces",
        metavar="NAMES",
        help="namespaces whose services the gateway serves, separated by commas; empty: there is no gateway. In others "
        "no service goes to zero, because nothing would wake it (default: all)",
    )
    parser.add_argument(
        "--measuring",
        default=environment(MEASURING_VARIABLE),
        metavar="JSON",
        help=f"how pods measure GPUs, as the chart writes it ({MEASURING_VARIABLE}; default: none do)",
    )
    add_log_level(parser)


def run(args: argparse.Namespace) -> int:
    """Run until a signal."""
    for role, what in REQUIRED_IMAGES.items():
        if not getattr(args, f"{role}_image"):
            raise BadInput(f"--{role}-image", f"is required: the image of the {what}")
    host, port = listen_address(args.health_listen, "--health-listen", DEFAULT_HEALTH_LISTEN)
    _log(args.log_level)
    options = ControllerOptions(
        images=Images(args.engine_image, args.sidecar_image, args.launcher_image),
        inspector_image=args.inspector_image,
        namespace=args.namespace or _own_namespace(),
        identity=default_identity(),
        health_host=host,
        health_port=port,
        remember_node_classes=args.remember_node_classes,
        node_cache=_node_cache(args),
        gateway_namespaces=gateway_namespaces(args.gateway_namespaces),
        measuring=_measuring(args),
    )
    _collect_garbage_seldom()
    loop.run(serve(options))
    return 0


def _collect_garbage_seldom() -> None:
    """Documents are made of thousands of objects and hold no cycles, so the collector would look at them in vain."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)


def _measuring(args: argparse.Namespace) -> MeasuringSettings | None:
    if not args.measuring:
        return None
    return MeasuringSettings.from_json(
        args.measuring, source="--measuring", image=args.engine_image, launcher_image=args.launcher_image
    )


def _node_cache(args: argparse.Namespace) -> NodeCache | None:
    path = args.node_cache
    if not path:
        return None
    if not path.startswith("/"):
        raise BadInput("--node-cache", f"{path} is no absolute path")
    return NodeCache(path, args.inspector_image)


def gateway_namespaces(names: str | None) -> frozenset[str] | None:
    """The value of `--gateway-namespaces`; None for all."""
    return None if names is None else frozenset(filter(None, (name.strip() for name in names.split(","))))


def _own_namespace() -> str:
    return _NAMESPACE_FILE.read_text().strip() if _NAMESPACE_FILE.is_file() else "default"


def _log(level: str) -> None:
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("kopf", "httpx", "httpcore", "aiohttp", "asyncio"):
        # These would log a line for every request or event.
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLevelName(level)))
