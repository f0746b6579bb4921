"""A plan in the form that the service's children are built from. Plain data: no planner is needed to use it."""

from __future__ import annotations

from dataclasses import dataclass

from uellm.api.sidecar_document import EngineTask, SidecarStepFactors, SidecarStepSeconds, StepBasisDocument
from uellm.hardware import ClaimNeeds, NodeNeeds


@dataclass(frozen=True, slots=True)
class RenderedPlan:
    """A plan and the documents that carry it to the launcher, the scheduler extender and the sidecar."""

    node_needs: NodeNeeds
    """What a node must be to hold a replica."""
    gpus_per_pod: int
    """All GPUs of a replica, or those on one of its nodes."""
    resource_name: str
    """The extended resource by which a pod asks for its GPUs."""
    weight_bytes: int
    """The model's weights as they are stored."""
    host_memory_bytes: int
    """Memory of the node that a replica needs."""
    host_millicores: int
    """CPU of the node that a replica needs."""
    annotation: str
    """The pod annotation for the scheduler extender, as JSON."""
    plan_json: str
    """The launcher's file `plan.json`."""
    max_model_len: int
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int
    """Requests that the engine runs at once; 0: not planned."""
    max_num_batched_tokens: int
    """Tokens that the engine computes in one step; 0: not planned."""
    priority_scheduling: bool
    """The engine orders its requests by priority."""
    step_seconds: SidecarStepSeconds | None
    """Step times on the planned devices; None: they are not measured, or a CPU stands in for them."""
    step_factors: SidecarStepFactors | None = None
    """By which earlier measurements differ from them; None: there are none."""
    step_basis: StepBasisDocument | None = None
    """What the step times were predicted for; None: measurements of them are not used elsewhere."""
    loads_adapters: bool = False
    """The engine has room for LoRA adapters."""
    task: EngineTask = "Generate"
    """What the engine is started for."""
    nodes: int = 1
    """Pods of a replica, each on a node."""
    claim: ClaimNeeds | None = None
    """What a pod claims by DRA; None: it asks for its GPUs by the extended resource."""

    @property
    def answers_in_tokens(self) -> bool:
        """Whether an answer takes the longer the longer it is."""
        return self.task in ("Generate", "Transcribe")
