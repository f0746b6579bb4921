"""The manifest of the download pod. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from uellm.api import LLMService
from uellm.api.names import DOWNLOAD_LABEL
from uellm.reconcile.download.order import CopyOrder
from uellm.reconcile.helper_pods.manifest import USER, HelperPod, helper_pod
from uellm.reconcile.names import download_prefix

RESOURCES = {
    "requests": {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "16Mi"},
    # A gigabyte a second, decrypted and summed up, takes several cores.
    "limits": {"cpu": "4", "memory": "1Gi", "ephemeral-storage": "64Mi"},
}


def download_pod(
    document: Mapping[str, Any],
    service: LLMService,
    order: CopyOrder,
    image: str,
    nodes: tuple[str, ...] = (),
    needed: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """The pod that makes a copy for `document`, which is `service`, parsed.

    `nodes`: of the plan. A volume of one node is made where its first pod is, so the engine has to find it there.
    `needed`: copies that stay when others make room for this one; None: nothing is deleted.
    """
    freeing = () if needed is None else ("--free", *(f"--keep={place}" for place in needed))
    helper = HelperPod(
        name="fetch",
        label=DOWNLOAD_LABEL,
        prefix=download_prefix(service.name),
        source=order.source,
        args=(*order.arguments, *freeing),
        resources=RESOURCES,
        environment=order.environment,
        volumes=order.volumes,
        mounts=order.mounts,
        on_volume=True,
        # A new volume belongs to root; one with many files is not walked through at each start.
        security={"fsGroup": USER, "fsGroupChangePolicy": "OnRootMismatch"},
        prefers_nodes=nodes,
    )
    return helper_pod(document, service, helper, image)
