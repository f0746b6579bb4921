"""`uellm plan`: plans an LLMService on the nodes of a file or of a live cluster. It changes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

import yaml

from uellm.api import LLMService, parse_node_class, parse_profile, parse_service, read_documents
from uellm.cli.adapters import with_adapters, with_draft
from uellm.cli.arguments import add_output
from uellm.cli.files import read_json
from uellm.cli.hub import SCHEME, model_facts
from uellm.cli.plan_cluster import Offered, namespace_of_context, offered_by_cluster
from uellm.cli.plan_svg import draw
from uellm.cli.plan_table import render
from uellm.errors import BadInput, PlanError
from uellm.hardware import Node
from uellm.hub import ModelFacts
from uellm.planner import plan as make_plan
from uellm.planner.efficiency import Efficiency
from uellm.planner.joining import as_joined
from uellm.planner.request import LeftOut, NodeOffer, PlanRequest
from uellm.planner.result import Plan
from uellm.reconcile.kueue import may_displace
from uellm.reconcile.node_class import node_class
from uellm.reconcile.planning.allocation import as_allocatable, waits_for_nodes
from uellm.reconcile.planning.node_classes import doubts, would_join
from uellm.reconcile.planning.request import architecture_of, check_environment, has_own_image, plan_request

HELPED_BY_GPUS = ("NoFit", "NeedsExactDevices")
"""Why a service has no plan, where GPUs that others hold may help."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument(
        "-f", "--file", required=True, metavar="SERVICE.yaml", help="file with the LLMService; -: standard input"
    )
    parser.add_argument(
        "--profiles",
        metavar="PROFILES.yaml",
        help="file of GPUNodeProfiles to plan on, and of GPUNodeClasses of nodes that may join (default: those of the "
        "current cluster, without the GPUs that other services hold or are promised)",
    )
    parser.add_argument(
        "--model-config",
        metavar="CONFIG.json|hf://OWNER/NAME",
        help="the model's config.json, or its name on the hub, with @REVISION if it is not main (HF_ENDPOINT, "
        "HF_TOKEN); instead of spec.model.config (default: that, else an hf:// model is looked up by its name)",
    )
    parser.add_argument(
        "--calibration",
        metavar="ENGINE.json",
        help="calibration by `uellm calibrate` (default: the service's annotation uellm.io/efficiency)",
    )
    add_output(parser, "table", "json", "yaml", "svg")
    parser.add_argument(
        "-n",
        "--namespace",
        help="namespace of the service, if its file names none (default: that of the kubeconfig's context)",
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="kubeconfig of the cluster (default: KUBECONFIG, then ~/.kube/config)"
    )
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: its current context)")


def run(args: argparse.Namespace) -> int:
    """Plan and print. If there is no plan, the status is 1 and the reason is printed."""
    config, facts = _model(args.model_config)
    service = _service(args, config)
    try:
        check_environment(service)
        facts = with_draft(service, with_adapters(service, facts or _by_its_name(service)))
        architecture = architecture_of(service, facts, served=not has_own_image(service))
        offered = _offered(args, service)
        request = plan_request(
            service, architecture, offered.nodes, left_out=offered.left_out, would_join=offered.would_join, facts=facts
        )
        if args.calibration:
            request = replace(request, efficiency=read_efficiency(args.calibration))
        plan, request = _planned(request, offered)
    except PlanError as error:
        if args.output in ("json", "yaml"):
            _print({"error": {"reason": error.reason, "message": str(error)}}, args.output)
        print(f"uellm plan: {error.reason}: {error}", file=sys.stderr)
        return 1
    if args.output == "svg":
        print(draw(*as_joined(plan, request)))
    elif args.output == "table":
        print(render(*as_joined(plan, request)))
    else:
        _print(plan.to_dict(), args.output)
    return 0


def _planned(request: PlanRequest, offered: Offered) -> tuple[Plan, PlanRequest]:
    """The plan and what it answers: on free GPUs, else as the operator plans pods that may displace others."""
    free = as_allocatable(request, claims=offered.claims)
    try:
        return make_plan(free), free
    except PlanError as error:
        if not offered.hardware or error.reason not in HELPED_BY_GPUS:
            raise
        whole = as_allocatable(replace(request, nodes=offered.hardware), claims=offered.claims)
        plan = make_plan(whole)
        print(
            "uellm plan: no free GPUs hold it: planned as if every GPU were free, because its pods may wait in a queue "
            f"or displace others ({error})",
            file=sys.stderr,
        )
        return plan, whole


def read_efficiency(path: str) -> Efficiency:
    """The calibration in an engine file. Raises BadInput."""
    document = read_json(path)
    return Efficiency.from_dict(
        document.get("efficiency") if isinstance(document, dict) else None, f"{path}: efficiency"
    )


def _offered(args: argparse.Namespace, service: LLMService) -> Offered:
    if args.profiles is None:
        return offered_by_cluster(service, kubeconfig=args.kubeconfig, context=args.context)
    for name in ("kubeconfig", "context"):
        if getattr(args, name) is not None:
            raise BadInput(f"--{name}", "names a cluster, but --profiles replaces the cluster: give only one of them")
    documents = read_documents(args.profiles)
    classes = [document for document in documents if document.get("kind") == "GPUNodeClass"]
    names = set[str]()
    for document in classes:
        name = str(parse_node_class(document).metadata.get("name"))
        if name in names:
            raise BadInput(args.profiles, f"holds two GPUNodeClasses named {name!r}")
        names.add(name)
    profiles = [document for document in documents if document.get("kind") != "GPUNodeClass"]
    offers = _offers(args.profiles, profiles)
    displaces = may_displace({"metadata": service.metadata, "spec": {"template": service.spec.template.to_dict()}})
    hardware = (NodeOffer(each.node, tuple(d.uuid for d in each.node.devices if d.usable)) for each in offers)
    return Offered(offers, *_joining(classes, service), tuple(hardware) if displaces else ())


def _joining(classes: list[dict[str, Any]], service: LLMService) -> tuple[tuple[LeftOut, ...], tuple[NodeOffer, ...]]:
    read = [node_class(document) for document in classes] if waits_for_nodes(service) else []
    offers, left_out = would_join(read, doubts(read, ()), service)
    return left_out, offers


def _model(source: str | None) -> tuple[Any, ModelFacts | None]:
    """The configuration that is given apart from the service, and the facts where it is looked up."""
    if source is None:
        return None, None
    if source.startswith(SCHEME):
        facts = model_facts(source)
        return facts.config, facts
    return read_json(source), None


def _by_its_name(service: LLMService) -> ModelFacts | None:
    """The facts of a model of the hub whose configuration is not given."""
    model = service.spec.model
    if model.config is not None or not model.uri.startswith(SCHEME):
        return None
    return model_facts(f"{model.uri}@{model.revision}")


def _service(args: argparse.Namespace, config: Any) -> LLMService:
    path, source = args.file, args.model_config
    services = [document for document in read_documents(path) if document.get("kind") == "LLMService"]
    if len(services) != 1:
        raise BadInput(path, f"must hold one LLMService; it holds {len(services)}")
    document = services[0]
    metadata = document.get("metadata")
    if isinstance(metadata, dict) and not metadata.get("namespace"):
        document = {**document, "metadata": {**metadata, "namespace": _namespace(args)}}
    if source is not None:
        document = _with_config(document, config, source)
    return parse_service(document)


def _namespace(args: argparse.Namespace) -> str:
    """The namespace of a service whose file names none, as kubectl finds it."""
    if args.namespace or args.profiles is not None:
        return args.namespace or "default"
    return namespace_of_context(kubeconfig=args.kubeconfig, context=args.context) or "default"


def _with_config(document: dict[str, Any], config: Any, name: str) -> dict[str, Any]:
    if not isinstance(config, dict):
        raise BadInput(name, "must be a JSON object")
    spec = document.get("spec")
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        return document  # the schema check reports what is missing
    return {**document, "spec": {**spec, "model": {**spec["model"], "config": config}}}


def _offers(path: str, documents: list[dict[str, Any]]) -> tuple[NodeOffer, ...]:
    """Every profiled node with its usable devices that are not allocated."""
    offers: dict[str, NodeOffer] = {}
    for document in documents:
        if document.get("kind") != "GPUNodeProfile":
            raise BadInput(
                path,
                f"holds a {document.get('kind')!r} document; it must hold only GPUNodeProfiles and GPUNodeClasses",
            )
        parse_profile(document)
        node = Node.from_profile(document)
        if node.name in offers:
            raise BadInput(path, f"holds two GPUNodeProfiles named {node.name!r}")
        free = (device for device in node.devices if device.usable and not device.allocated_to_pod_uid)
        offers[node.name] = NodeOffer(node, tuple(device.uuid for device in free))
    return tuple(offers.values())


def _print(document: dict[str, Any], output: str) -> None:
    print(json.dumps(document) if output == "json" else yaml.safe_dump(document, sort_keys=False).rstrip())
