"""LLMService: a model, its latency targets and its load, as the user writes them."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from uellm.api.adapter import MOST_ADAPTERS, AdapterSpec
from uellm.api.base import ATOMIC, PRESERVED, MapBy, Model, ValidationRule
from uellm.api.engine import EngineSpec, PodTemplate
from uellm.api.http import HttpSpec
from uellm.api.inference_pool import InferencePoolSpec
from uellm.api.llmservice_status import LLMServiceStatus
from uellm.api.model_cache import ModelCache
from uellm.api.names import SCHEDULER_NAME
from uellm.api.scalars import DnsSubdomain, Duration, duration_s
from uellm.api.slo import Slo, WorkloadSpec
from uellm.api.uris import COMMIT, MODEL_URIS, REVISION, matches_uri, uri_cel
from uellm.placement_policies import PlacementPolicy

MAX_NAME_LENGTH = 40

_NAME = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"


class SecretKey(Model):
    """A key of a Secret in the service's own namespace."""

    name: DnsSubdomain
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(pattern=r"^[-._A-Za-z0-9]+$", max_length=253)]
    """Key in the Secret's data."""


class ModelSource(Model):
    """Which model to serve, where its weights are, and what the planner must know about it."""

    rules = (
        ValidationRule(
            cel="!has(self.cache) || self.uri.startsWith('hf://')",
            holds=lambda model: model.cache is None or model.uri.startswith("hf://"),
            message="must not be set unless uri is hf://: a model of another source is not copied",
            field=".cache",
        ),
        ValidationRule(
            cel=f"!has(self.cache) || !has(self.config) || self.revision.matches('{COMMIT}')",
            holds=lambda model: (
                model.cache is None or model.config is None or re.fullmatch(COMMIT, model.revision) is not None
            ),
            message="must be a commit of 40 hexadecimal digits if both cache and config are set: nothing else says "
            "which commit is copied",
            field=".revision",
        ),
    )

    uri: Annotated[
        str,
        StringConstraints(min_length=6, max_length=512),
        ValidationRule(
            cel=uri_cel(MODEL_URIS),
            holds=lambda uri: matches_uri(uri, MODEL_URIS),
            message="must be hf://organisation/model, pvc://claim/path, file:///path, oci://registry/repository:tag, "
            "s3://bucket/path or gs://bucket/path; no part may begin with a dot, and a registry has a dot or a port",
        ),
    ]
    """Where the weights are: `hf://organisation/model`, `pvc://claim/path`, `file:///path` inside the engine's
    container, `oci://registry/repository:tag`, `s3://bucket/path` or `gs://bucket/path`. An image may be named by
    `@sha256:...`, too, and `#path` is the model's directory in it."""
    revision: Annotated[str, StringConstraints(pattern=REVISION, max_length=128)] = "main"
    """Branch, tag or commit of an `hf://` model. Where the model is looked up, the engine is started with the commit
    that a branch or tag stood for then, until this or the URI changes."""
    served_name: Annotated[str | None, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)] = (
        None
    )
    """The model's name in requests; the resource's name where not set."""
    config: Annotated[dict[str, Any] | None, Field(max_length=256, json_schema_extra=dict(PRESERVED))] = None
    """The model's config.json. Where not set, the operator looks it up before any engine starts, together with the
    headers of the weights: on the hub, or on the volume. Where set, it is used as it is, and nothing is looked up."""
    cache: ModelCache | None = None
    """Where an `hf://` model is kept, so that its files are downloaded once and engines start from them without the
    hub; each engine downloads them anew where not set."""
    adapters: Annotated[tuple[AdapterSpec, ...], Field(max_length=MOST_ADAPTERS), MapBy("name")] = ()
    """LoRA adapters that are served beside the model, each under its own name. The first one, one of a larger rank, and
    more of them than the plan has slots for replace the pods; any other change is taken over while they run."""
    token_secret_ref: SecretKey | None = None
    """A token for gated `hf://` models and adapters."""
    trust_remote_code: bool = False
    """Whether the engine may run code of the model's repository, which some models that the engine does not know need:
    `--trust-remote-code`."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Type of weights and activations; `auto` means that of config.json."""
    quantization: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$", max_length=32)] = "auto"
    """Quantization of the weights, by vLLM's name for it. `auto` means that of config.json, `none` that it has none."""
    task: Literal["Generate", "Embed", "Score", "Transcribe"] | None = None
    """What the model is served for: text, vectors, scores and classes, or transcripts of speech. Where not set, what
    the model is for by its class and the files of its repository. A class with `tpot` must not be set for `Embed` and
    `Score`, whose answers have no tokens."""
    max_model_len: Annotated[int | None, Field(ge=1, le=100_000_000)] = None
    """Longest prompt and answer together, in tokens; the maximum of config.json where not set."""


class Parallelism(Model):
    """Overrides of the planner. Each is optional, always takes precedence, and is always shown."""

    tensor: Annotated[int | None, Field(ge=1, le=64)] = None
    """Number of GPUs that share each layer."""
    pipeline: Annotated[int | None, Field(ge=1, le=64)] = None
    """Number of pipeline stages that the layers are divided into."""
    layers: Annotated[
        tuple[Annotated[int, Field(ge=1, le=10_000)], ...] | None,
        Field(min_length=1, max_length=64, json_schema_extra=dict(ATOMIC)),
    ] = None
    """Layers of each stage, in pipeline order."""


class GpuRange(Model):
    """Number of GPUs of a replica. If min and max are equal, the number is fixed."""

    rules = (
        ValidationRule(
            cel="!has(self.max) || self.min <= self.max",
            holds=lambda gpus: gpus.max is None or gpus.min <= gpus.max,
            message="must not be above max",
            field=".min",
        ),
    )

    min: Annotated[int, Field(ge=1, le=64)] = 1
    """Fewest GPUs of a replica."""
    max: Annotated[int | None, Field(ge=1, le=64)] = None
    """Most GPUs of a replica; all GPUs of a node where not set."""


class PlacementSpec(Model):
    """Where and how replicas are placed."""

    policy: PlacementPolicy = "HELR"
    """How layers are placed on GPUs: HELR weighs speed against devices used, HE uses the fewest devices, LR
    favours speed, BGS is greedy best fit, Even is vLLM's own even split.
    """
    gpus: GpuRange = Field(default_factory=GpuRange)
    """GPUs of each replica."""
    replan: Literal["IfBroken", "WhenBetter"] = "IfBroken"
    """When a plan whose pods run is replaced, which loads the model anew. IfBroken: when the nodes no longer hold it;
    the condition BetterPlan reports a better one. WhenBetter: also when another meets targets that it misses, or is
    better by 10 % at the objective, at most every 30 minutes."""
    allocation: Literal["DevicePlugin", "DRA", "Auto"] = "DevicePlugin"
    """How a pod is given its GPUs. DevicePlugin: it asks for a number, and the kubelet picks them. DRA (Kubernetes 1.34
    and NVIDIA's DRA driver): a ResourceClaim asks for what each stage was planned on. Auto: DRA where the driver is
    there and the plan gains by it."""
    multi_node: Literal["Never", "Allowed"] = "Never"
    """Whether a replica may span several nodes where no single node holds the model. Allowed needs LeaderWorkerSet in
    the cluster."""
    scheduler_name: DnsSubdomain = SCHEDULER_NAME
    """The scheduler of the engine's pods. With a scheduler other than UELLM's, nodes that cannot hold the plan are
    not ruled out when a pod is scheduled. Pods that claim their GPUs by DRA are left to the cluster's own scheduler
    where this is UELLM's.
    """


class Scheduling(Model):
    """How the sidecar orders and limits waiting requests."""

    policy: Literal["SLO-ODBS", "EDF", "SJF", "FCFS"] = "SLO-ODBS"
    """SLO-ODBS: lets as many requests as possible meet their targets, by deadline and predicted length; EDF:
    earliest deadline first; SJF: shortest predicted answer first; FCFS: in order of arrival.
    """
    max_queued_requests: Annotated[int, Field(ge=1, le=100_000)] = 1024
    """Most requests that may wait in a replica; further ones are refused with status 429."""
    predictor: Literal["Online", "Off"] = "Online"
    """Whether answer lengths are predicted from earlier requests. A prediction only orders requests; it never cuts
    an answer.
    """


class SecretName(Model):
    """A Secret in the service's own namespace."""

    name: DnsSubdomain
    """Name of the Secret."""


class AuthSpec(Model):
    """Who may send requests."""

    api_keys_secret_ref: SecretName
    """A Secret; each of its values is a valid API key. A change takes effect within two minutes."""


class Rollout(Model):
    """How replicas are replaced when the pod template changes."""

    rules = (
        ValidationRule(
            cel="self.maxSurge > 0 || self.maxUnavailable > 0",
            holds=lambda rollout: rollout.max_surge > 0 or rollout.max_unavailable > 0,
            message="must not be 0 if maxSurge is 0: no replica could be replaced",
            field=".maxUnavailable",
        ),
    )

    max_surge: Annotated[int, Field(ge=0, le=100)] = 0
    """Replicas that may run in addition to the desired number; each needs GPUs of its own."""
    max_unavailable: Annotated[int, Field(ge=0, le=100)] = 1
    """Replicas that may be unavailable during a rollout."""


class Autoscaling(Model):
    """How many replicas the operator may run."""

    rules = (
        ValidationRule(
            cel="self.maxReplicas >= self.minReplicas",
            holds=lambda autoscaling: autoscaling.max_replicas >= autoscaling.min_replicas,
            message="must be at least minReplicas",
            field=".maxReplicas",
        ),
    )

    min_replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """The least number. 0: a service without requests runs no pods, and the gateway starts one for the next request.
    Where no gateway serves the namespace, it is 1."""
    max_replicas: Annotated[int, Field(ge=1, le=1000)]
    """The largest number."""
    idle_timeout: Annotated[
        Duration,
        ValidationRule(
            cel="duration(self) >= duration('30s')",
            holds=lambda text: duration_s(text) >= 30,
            message="must be at least 30s",
        ),
    ] = "10m"
    """How long no request has come when the last replica ends, if minReplicas is 0."""

    @property
    def idle_timeout_s(self) -> float:
        """Seconds."""
        return duration_s(self.idle_timeout)


class LLMServiceSpec(Model):
    """The desired state."""

    model: ModelSource
    """The model."""
    slo: Slo = Field(default_factory=Slo)
    """Latency targets."""
    workload: WorkloadSpec = Field(default_factory=WorkloadSpec)
    """The load to size for."""
    parallelism: Parallelism = Field(default_factory=Parallelism)
    """Overrides of the planner."""
    placement: PlacementSpec = Field(default_factory=PlacementSpec)
    """Where and how replicas are placed."""
    scheduling: Scheduling = Field(default_factory=Scheduling)
    """The queue in front of the engine."""
    http: HttpSpec = Field(default_factory=HttpSpec)
    """Connections and bodies of requests."""
    auth: AuthSpec | None = None
    """API keys that requests must carry; everybody who can reach the service may send requests where not set."""
    engine: EngineSpec = Field(default_factory=EngineSpec)
    """The engine's container."""
    template: PodTemplate = Field(default_factory=PodTemplate)
    """Pod template merged over the operator's."""
    rollout: Rollout | None = None
    """How replicas are replaced. Where not set, one more replica starts first if the cluster has GPUs for it at that
    moment; if not, or if its pod is Pending for a minute, they are replaced in place, one at a time."""
    autoscaling: Autoscaling | None = None
    """The operator chooses the number of replicas by load and targets; `replicas` is not looked at then."""
    routing: Literal["Service", "InferencePool"] = "Service"
    """Who chooses the pod for a request. Service: Kubernetes, at random. InferencePool: also the endpoint picker of a
    Gateway, for which an InferencePool is made. UELLM's own gateway serves both."""
    inference_pool: InferencePoolSpec = Field(default_factory=InferencePoolSpec)
    """The InferencePool; not looked at unless `routing` is InferencePool."""
    suspend: bool = False
    """True: no pods run, but the plan is kept."""
    replicas: Annotated[int, Field(ge=0, le=1000)] = 1
    """Copies of the model, each with GPUs of its own."""


class LLMService(Model):
    """A large language model served with latency targets."""

    rules = (
        ValidationRule(
            cel=f"self.metadata.name.size() <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{_NAME}')",
            holds=lambda service: (
                len(service.name) <= MAX_NAME_LENGTH and re.fullmatch(_NAME, service.name) is not None
            ),
            message=f"must be a DNS label of at most {MAX_NAME_LENGTH} characters that begins with a letter, because "
            "a Service has the same name",
            field=".metadata.name",
        ),
        ValidationRule(
            cel="!has(self.spec.model.adapters) || self.spec.model.adapters.all(a, a.name != "
            "(has(self.spec.model.servedName) ? self.spec.model.servedName : self.metadata.name))",
            holds=lambda service: all(each.name != service.served_name for each in service.spec.model.adapters),
            message="must not have the name that the model itself is served under: requests choose by name",
            field=".spec.model.adapters",
        ),
    )

    api_version: Literal["uellm.io/v1alpha1"] = "uellm.io/v1alpha1"
    """Version of this schema."""
    kind: Literal["LLMService"] = "LLMService"
    """Kind of the resource."""
    metadata: dict[str, Any]
    """Standard metadata."""
    spec: LLMServiceSpec
    """The desired state."""
    status: LLMServiceStatus | None = None
    """The plan and the observed state."""

    @property
    def name(self) -> str:
        """The resource's name."""
        return str(self.metadata.get("name", ""))

    @property
    def namespace(self) -> str:
        """Its namespace; `default` if the file names none."""
        return str(self.metadata.get("namespace") or "default")

    @property
    def served_name(self) -> str:
        """The model's name in requests."""
        return self.spec.model.served_name or self.name
