"""The manifest of the inspection pod. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uellm.api import LLMService
from uellm.api.names import INSPECTION_LABEL
from uellm.reconcile.helper_pods.manifest import HelperPod, helper_pod
from uellm.reconcile.inspection.question import KnownCommits, Question
from uellm.reconcile.model_claim import image_of
from uellm.reconcile.names import inspection_prefix

DEADLINE_S = 900
IMAGE_DEADLINE_S = 6 * 3600
"""Where the model is an image: a large one takes hours to pull over a slow network."""
RESOURCES = {
    "requests": {"cpu": "50m", "memory": "64Mi", "ephemeral-storage": "16Mi"},
    # The headers of the largest models have some 100,000 tensors.
    "limits": {"cpu": "1", "memory": "1Gi", "ephemeral-storage": "64Mi"},
}

MOST_NODES = 100
"""That are named in a pod."""
_NONE_KNOWN = KnownCommits()


def inspection_pod(
    document: Mapping[str, Any],
    service: LLMService,
    question: Question,
    image: str,
    nodes: Sequence[str] = (),
    known: KnownCommits = _NONE_KNOWN,
) -> dict[str, Any]:
    """The pod that answers a question about the model of `document`, which is `service`, parsed.

    `nodes`: those with GPUs. A model that is an image is pulled where the pod is, so it is where an engine may be.
    `known`: the commits at which the same model is asked about.
    """
    helper = HelperPod(
        name="inspect",
        label=INSPECTION_LABEL,
        prefix=inspection_prefix(service.name),
        source=question.source,
        args=question.at(known).arguments,
        resources=RESOURCES,
        environment=question.environment,
        volumes=question.volumes,
        mounts=question.mounts,
        on_volume=question.on_volume,
        prefers_nodes=() if image_of(service) is None else tuple(nodes[:MOST_NODES]),
        deadline_s=DEADLINE_S if image_of(service) is None else IMAGE_DEADLINE_S,
    )
    return helper_pod(document, service, helper, image)
