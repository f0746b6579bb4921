"""The state that one pass works on: a service, its children, its pods and what they report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from uellm.api import LLMService, parse_service
from uellm.api.attainment_report import ClassMeasurement, StepMeasurement
from uellm.api.names import REVISION_LABEL
from uellm.api.running_report import RunningReport
from uellm.api.sidecar_document import ToldAdapters
from uellm.errors import BadInput
from uellm.hub import ModelFacts
from uellm.kube.kinds import (
    CONFIGMAP,
    DEPLOYMENT,
    HTTPROUTE,
    INFERENCEPOOL,
    LEADERWORKERSET,
    PDB,
    PVC,
    RESOURCECLAIMTEMPLATE,
    SERVICE,
    Kind,
)
from uellm.planner.result import Plan
from uellm.pod_interface import SIDECAR_FILE
from uellm.reconcile.adapters import read_told
from uellm.reconcile.cache import Cache
from uellm.reconcile.children.former import FormerConfig, former_spec_digest
from uellm.reconcile.children.leader_worker_set import as_deployment
from uellm.reconcile.children.revision import Revision
from uellm.reconcile.download.download_state import NOT_NEEDED, DownloadState
from uellm.reconcile.dra.support import NOT_SERVED, DraSupport
from uellm.reconcile.field_effects import rolling_digest
from uellm.reconcile.inspection.model_state import GIVEN, ModelState
from uellm.reconcile.names import (
    IMAGES_ANNOTATION,
    SPEC_ANNOTATION,
    TEMPLATE_ANNOTATION,
    Key,
    belongs_to,
    config_name,
    deployment_name,
    uid_of,
    weights_name,
)
from uellm.reconcile.node_class import NodeClass
from uellm.reconcile.optional_kinds import Availability
from uellm.reconcile.pods.engine_readiness import unschedulable_since
from uellm.reconcile.pods.groups import without_workers
from uellm.reconcile.pods.placements import ReportedPlacement
from uellm.reconcile.pods.pod_failures import NodeState
from uellm.reconcile.profiled_node import ProfiledNode
from uellm.reconcile.scaling.scaling import Scaling, wanted_replicas
from uellm.reconcile.stored import Object

# Set by Kubernetes where a kubelet has been silent for 40 s.
_UNREACHABLE = "node.kubernetes.io/unreachable"
# A label of the nodes that Karpenter made.
_NODEPOOL = "karpenter.sh/nodepool"
# Set by the Cluster Autoscaler and by Karpenter on a node that they are about to drain.
_LEAVING = {"ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted"}


@dataclass(frozen=True)
class Observed:
    """The state that a decision is based on. It shares objects with the cache: never change them."""

    document: Object
    """The LLMService as the API server has it."""
    service: LLMService | None
    """The same, parsed; None where this version of the operator cannot parse it."""
    invalid: str = ""
    """Why it cannot be parsed."""
    children: Mapping[Kind, Object] = field(default_factory=dict)
    """Its existing children, but for ConfigMaps."""
    configmaps: Mapping[str, Object] = field(default_factory=dict)
    """Its existing ConfigMaps, by name."""
    revisions: Mapping[str, Revision] = field(default_factory=dict)
    """Its revisions, by name; also one whose ConfigMap somebody deleted while it is in use."""
    pods: tuple[Object, ...] = ()
    """Its engines' pods."""
    inspection_pods: tuple[Object, ...] = ()
    """The pods that look its model up."""
    download_pods: tuple[Object, ...] = ()
    """The pods that copy its model."""
    model: ModelState = GIVEN
    """What is known of its model."""
    download: DownloadState = NOT_NEEDED
    """How far the copy of its model is."""
    reports: Mapping[str, ReportedPlacement] = field(default_factory=dict)
    """What the pods' launchers report, by pod uid."""
    running: Mapping[str, RunningReport] = field(default_factory=dict)
    """Which configuration the pods' sidecars report to run with, by pod uid."""
    measurements: Mapping[str, tuple[ClassMeasurement, ...]] = field(default_factory=dict)
    """What the pods' sidecars measured, by pod uid."""
    step_times: Mapping[str, StepMeasurement] = field(default_factory=dict)
    """The step times that they measured, by pod uid."""
    nodes: tuple[ProfiledNode, ...] = ()
    """Every profiled node of the cluster."""
    hardware_version: int = field(default=0, compare=False)
    room_version: int = field(default=0, compare=False)
    """The cache's, when it was observed."""
    node_classes: tuple[NodeClass, ...] = ()
    """Every class of nodes that may join."""
    pool_labels: tuple[frozenset[str], ...] = ()
    """The labels of each NodePool of Karpenter, while the service waits for a node; empty where there is none."""
    node_states: Mapping[str, NodeState] = field(default_factory=dict)
    """The state of the pods' nodes, by name."""
    karpenter_nodes: frozenset[str] = frozenset()
    """Those of the pods' nodes that Karpenter manages."""
    scaling: Scaling | None = None
    """How many replicas the operator chose; None where it does not choose the number."""
    kubelet_warnings: Mapping[str, str] = field(default_factory=dict)
    """Warnings of the kubelets about pods that they cannot start, by pod uid."""
    image_pulls: Mapping[str, str] = field(default_factory=dict)
    """Images that kubelets pull for pods, by uid."""
    queue_words: Mapping[str, str] = field(default_factory=dict)
    """Why pods wait in their queues, by uid."""
    available: Mapping[Kind, Availability] = field(default_factory=dict)
    """Whether the cluster has the kinds of other projects."""
    dra: DraSupport = NOT_SERVED
    """What there is for pods that claim GPUs."""
    claim_templates: Mapping[str, Object] = field(default_factory=dict)
    """Its existing ResourceClaimTemplates, by name."""
    claimed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Uuids of the GPUs that its pods' claims hold, in the order of the stages, by pod uid."""

    @property
    def key(self) -> Key:
        """The service's key."""
        return Key(self.document["metadata"]["namespace"], self.document["metadata"]["name"])

    @property
    def generation(self) -> int:
        """Generation of the spec."""
        return int(self.document["metadata"].get("generation") or 0)

    @property
    def status(self) -> Mapping[str, Any]:
        """The status as it was last written."""
        return self.document.get("status") or {}

    @property
    def replicas(self) -> int:
        """Replicas that should run now."""
        if self.scaling is not None:
            return 0 if self.suspended else self.scaling.replicas
        return wanted_replicas(self.document)

    @property
    def facts(self) -> ModelFacts | None:
        """The facts of its model; None where they are not known, or where the spec has the configuration."""
        return self.model.facts

    @property
    def told_adapters(self) -> ToldAdapters:
        """The LoRA adapters that its sidecars are told of."""
        return read_told(self.configmaps.get(config_name(self.key.name)), SIDECAR_FILE)

    @property
    def suspended(self) -> bool:
        """True where the user wants no pods."""
        return bool(self.document["spec"].get("suspend"))

    @property
    def leaving_nodes(self) -> frozenset[str]:
        """Nodes of its pods that are being emptied."""
        return frozenset(name for name, state in self.node_states.items() if state is NodeState.LEAVING)

    @property
    def engines(self) -> tuple[Object, ...]:
        """Those of its pods that have a sidecar: one for each replica."""
        return tuple(without_workers(self.pods))

    @cached_property
    def workload(self) -> tuple[Kind, Object] | None:
        """The engine's Deployment, or the LeaderWorkerSet of replicas that span nodes; None where there is neither.

        While one takes the place of the other, it is that of the plan in force.
        """
        in_groups = self.incumbent is not None and self.incumbent.nodes_per_replica > 1
        kinds = (LEADERWORKERSET, DEPLOYMENT) if in_groups else (DEPLOYMENT, LEADERWORKERSET)
        return next(((kind, self.children[kind]) for kind in kinds if kind in self.children), None)

    @cached_property
    def deployment(self) -> Object | None:
        """The same in the form of a Deployment, or None."""
        if self.workload is None:
            return None
        kind, live = self.workload
        return as_deployment(live, self.pods) if kind == LEADERWORKERSET else live

    @cached_property
    def incumbent(self) -> Plan | None:
        """The plan in force, or None."""
        try:
            return Plan.from_dict(self.status["plan"])
        except (KeyError, ValueError, TypeError):
            return None

    @cached_property
    def revision(self) -> Revision | None:
        """The revision in force: the one that was decided on last; None where there is none yet."""
        template = self.deployment["spec"]["template"] if self.deployment else {}
        deployed = ((template.get("metadata") or {}).get("labels") or {}).get(REVISION_LABEL)
        known = (self.revisions.get(name) for name in (self.status.get("revision"), deployed) if name)
        return next(filter(None, known), None)

    @property
    def is_former(self) -> bool:
        """True where the pods are those of a release without revisions, and none has been decided on since."""
        return self.revision is None and self.pinned_template is not None

    @cached_property
    def former_config(self) -> FormerConfig | None:
        """What pods of a release without revisions read, for as long as there may be any."""
        live = self.configmaps.get(config_name(self.key.name))
        rolled_out = all(REVISION_LABEL in (pod["metadata"].get("labels") or {}) for pod in self.pods)
        if live is None or (rolled_out and not self.is_former and not self.replaces_pods()):
            return None
        return FormerConfig.of(live.get("data") or {})

    @cached_property
    def spec_digest(self) -> str:
        """Digest of the part of the spec that pods are built from."""
        return rolling_digest(self.service) if self.service is not None else ""

    @property
    def spec_mark(self) -> str:
        """Stored with what is built, to distinguish a changed spec from a changed operator."""
        return f"{self.generation}/{self._spec_digest_as_stored()}"

    @property
    def spec_changed(self) -> bool:
        """True where the pods were built for another spec, or nothing was built yet.

        The same generation means the same spec, whatever a newer operator takes for a part of it. With another
        generation the digest decides, because a change of replicas counts as a generation too.
        """
        mark = self._annotation(SPEC_ANNOTATION) if self.is_former else self.revision and self.revision.spec_mark
        generation, _, spec_digest = (mark or "").partition("/")
        if not mark or generation == str(self.generation):
            return not mark
        # A spec that cannot be parsed has no digest.
        return not spec_digest or spec_digest != self._spec_digest_as_stored()

    def _spec_digest_as_stored(self) -> str:
        return former_spec_digest(self.document["spec"]) if self.is_former else self.spec_digest

    @property
    def pinned_images(self) -> str | None:
        """The images of pods of a release without revisions, as it stored them."""
        return self._annotation(IMAGES_ANNOTATION)

    @property
    def pinned_template(self) -> str | None:
        """The pod template of a release without revisions, as it stored it."""
        return self._annotation(TEMPLATE_ANNOTATION)

    @property
    def unschedulable_since(self) -> str | None:
        """Since when the longest-waiting pod has found no node (RFC 3339), or None."""
        return min(filter(None, (unschedulable_since(pod) for pod in self.pods)), default=None)

    def replaces_pods(self) -> bool:
        """True while pods of an older template exist or may come back."""
        status, metadata = (self.deployment or {}).get("status") or {}, (self.deployment or {}).get("metadata") or {}
        seen = int(status.get("observedGeneration") or 0) >= int(metadata.get("generation") or 0)
        return not seen or int(status.get("replicas") or 0) != int(status.get("updatedReplicas") or 0)

    def child(self, kind: Kind, name: str) -> Object | None:
        """An existing child, or None."""
        named = {CONFIGMAP: self.configmaps, RESOURCECLAIMTEMPLATE: self.claim_templates}.get(kind)
        return self.children.get(kind) if named is None else named.get(name)

    def _annotation(self, name: str) -> str | None:
        annotations = (self.deployment or {}).get("metadata", {}).get("annotations") or {}
        value: str | None = annotations.get(name)
        return value


def observe(cache: Cache, key: Key) -> Observed | None:
    """The service as the cache has it, without reports; None where it is gone or being deleted."""
    document = cache.service(key)
    if document is None or "deletionTimestamp" in document["metadata"]:
        return None
    service, invalid = _read(document)
    pods = tuple(cache.pods(key))
    homes = {name: cache.node(name) for pod in pods if (name := pod["spec"].get("nodeName"))}
    return Observed(
        document,
        service,
        invalid,
        children={kind: child for kind, child in _children(cache, key) if belongs_to(child, document)},
        configmaps={each["metadata"]["name"]: each for each in cache.configmaps(key) if belongs_to(each, document)},
        claim_templates={
            each["metadata"]["name"]: each for each in cache.claim_templates(key) if belongs_to(each, document)
        },
        claimed={uid: held for uid in map(uid_of, pods) if (held := cache.claimed(uid))},
        dra=cache.dra,
        pods=pods,
        inspection_pods=tuple(cache.inspection_pods(key)),
        download_pods=tuple(cache.download_pods(key)),
        nodes=cache.profiled_nodes(),
        hardware_version=cache.hardware_version,
        room_version=cache.room_version,
        node_classes=cache.node_classes(),
        node_states={name: _node_state(node) for name, node in homes.items()},
        karpenter_nodes=frozenset(name for name, node in homes.items() if _is_of_karpenter(node)),
        available=dict(cache.available),
    )


def _node_state(node: Object | None) -> NodeState:
    if node is None:
        return NodeState.GONE
    taints = {taint.get("key") for taint in node["spec"].get("taints") or ()}
    if _UNREACHABLE in taints:
        return NodeState.UNREACHABLE
    leaving = node["spec"].get("unschedulable") or taints & _LEAVING
    return NodeState.LEAVING if leaving else NodeState.THERE


def _is_of_karpenter(node: Object | None) -> bool:
    return node is not None and _NODEPOOL in (node["metadata"].get("labels") or {})


def _read(document: Object) -> tuple[LLMService | None, str]:
    try:
        return parse_service({name: document[name] for name in ("apiVersion", "kind", "metadata", "spec")}), ""
    except BadInput as error:
        return None, str(error)


def child_names(key: Key) -> dict[Kind, str]:
    """The name of each child, but for ConfigMaps."""
    return {
        PVC: weights_name(key.name),
        SERVICE: key.name,
        PDB: key.name,
        DEPLOYMENT: deployment_name(key.name),
        LEADERWORKERSET: deployment_name(key.name),
        INFERENCEPOOL: key.name,
        HTTPROUTE: key.name,
    }


def _children(cache: Cache, key: Key) -> list[tuple[Kind, Object]]:
    found = ((kind, cache.get(kind, name, key.namespace)) for kind, name in child_names(key).items())
    return [(kind, child) for kind, child in found if child is not None]
