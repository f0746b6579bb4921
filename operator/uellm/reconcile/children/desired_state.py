"""What a service's children are built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from uellm.api.llmservice import LLMService
from uellm.api.sidecar_document import NO_ADAPTERS, ToldAdapters
from uellm.reconcile.children.rollout import NO_SURGE, Surge
from uellm.reconcile.children.stand_in import NO_STAND_IN, StandIn
from uellm.reconcile.rendered_plan import RenderedPlan

if TYPE_CHECKING:
    from uellm.reconcile.children.former import FormerConfig
    from uellm.reconcile.children.revision import Revision


class Images(NamedTuple):
    """The images of the engine's pod."""

    engine: str
    sidecar: str
    launcher: str

    def to_json(self) -> str:
        """The form in which they are stored on a Deployment."""
        return json.dumps(self._asdict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Images | None:
        """The inverse of `to_json`; None for what is not its output."""
        try:
            read = json.loads(text)
            return cls(str(read["engine"]), str(read["sidecar"]), str(read["launcher"]))
        except (ValueError, KeyError, TypeError):
            return None


class NodeCopier(NamedTuple):
    """What copies the model to a pod's node."""

    container: Mapping[str, Any]
    """The first one of the pod, which runs as long as the pod does."""
    host_path: Mapping[str, Any]
    """The node's directory for models."""
    volumes: tuple[Mapping[str, Any], ...]
    """Others that the container mounts."""
    compiled: str
    """Where the service's engines may write what they compile, below the directory."""


class PinnedTemplate(NamedTuple):
    """A pod template of a release without revisions, and the shape of the plan that it was built for.

    It is kept until the spec or the shape changes: an upgrade of the operator is no reason to load a model again.
    """

    shape: str
    template: Mapping[str, Any]

    def to_json(self) -> str:
        """The form in which it is stored on a Deployment."""
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> PinnedTemplate | None:
        """The inverse of `to_json`; None for what is not its output."""
        try:
            read = json.loads(text)
            return cls(str(read["shape"]), dict(read["template"]))
        except (ValueError, KeyError, TypeError):
            return None


@dataclass(frozen=True)
class DesiredState:
    """A service, the parts of its pods, and what the operator adds."""

    document: Mapping[str, Any]
    """The LLMService as the API server has it."""
    service: LLMService
    """The same, parsed."""
    rendered: RenderedPlan | None
    """The plan for its pods; None where they keep the revision that they have."""
    images: Images
    """Images of the pods' containers."""
    replicas: int
    """Pods that should run."""
    spec_mark: str
    """Generation and digest of the spec that this is built for."""
    live: Mapping[str, Any] | None = None
    """The Deployment as it is; None where there is none."""
    surge: Surge = NO_SURGE
    """Whether one more replica could start before an old one ends."""
    stand_in: StandIn = NO_STAND_IN
    """For a replica whose node is being emptied."""
    devices_json: str = ""
    """Facts of single GPUs, for the launcher."""
    inputs: str = ""
    """Digest of the plan that this is built for."""
    revision: Revision | None = None
    """The revision that the pods keep; None: it is made from the plan."""
    claim_spec: Mapping[str, Any] | None = None
    """What its pods claim, without GPUs that have become unusable; None where they claim none."""
    pinned: PinnedTemplate | None = None
    """The pod template of pods of a release without revisions, where they are to be left alone."""
    adapters: ToldAdapters = NO_ADAPTERS
    """LoRA adapters that the sidecars are told of."""
    compiled: str = ""
    """Where engines may write what they compile, below the directory of the volume of the model; empty for nowhere."""
    copier: NodeCopier | None = None
    """Where pods copy the model to their nodes; None for elsewhere."""
    former: FormerConfig | None = None
    """What pods of such a release read; None where there are none."""

    @property
    def nodes(self) -> int:
        """Nodes that a replica spans."""
        return 1 if self.revision is None else self.revision.nodes

    @property
    def plan(self) -> RenderedPlan:
        """The plan, where a revision is made from it."""
        assert self.rendered is not None, "a revision that is kept needs no plan"
        return self.rendered
