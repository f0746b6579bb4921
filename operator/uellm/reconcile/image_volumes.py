"""Whether the API server has image volumes, by which `oci://` models are mounted.

They are there by default from Kubernetes 1.35 on, and before only behind a feature gate, which its version does not
tell. A server without them drops the field, and so refuses the pod. So a pod is tried, without being made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any

from uellm.kube import Invalid, KubeError
from uellm.reconcile.model_claim import image_volume
from uellm.reconcile.obstacle import Obstacle

Try = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
"""Creates a pod as a dry run, and returns what it would be. Raises KubeError."""

NO_IMAGE_VOLUMES = "NoImageVolumes"
ASK_AGAIN_S = 600.0
"""Of a server that has none: it may be upgraded."""
_VOLUME = "spec.volumes[0]"


class ImageVolumes:
    """What is known of the API server. It is asked once, and again later where it has no image volumes."""

    def __init__(self, try_pod: Try) -> None:
        self._try = try_pod
        self._there = False
        self._asked: datetime | None = None

    async def are_missing(self, namespace: str, now: datetime) -> bool:
        """Whether an image cannot be mounted. `namespace`: where the pod is tried."""
        if self._there:
            return False
        if self._asked is None or now - self._asked >= timedelta(seconds=ASK_AGAIN_S):
            if await self._has_them(namespace):
                self._there = True
                return False
            self._asked = now
        return True

    async def _has_them(self, namespace: str) -> bool:
        try:
            made = await self._try(_pod(namespace))
        except Invalid as error:
            named = (error.message, *(field for field, _ in error.causes))
            return not any(_VOLUME in each for each in named)
        except KubeError:
            # A quota or an admission policy says nothing about volumes, and the pod that is made meets it again.
            return True
        return any("image" in each for each in made["spec"]["volumes"])


def no_image_volumes(uri: str) -> Obstacle:
    """Why an `oci://` model cannot be mounted, and what to do."""
    return Obstacle(
        NO_IMAGE_VOLUMES,
        f"{uri} would be mounted as an image volume, and this API server has none: upgrade to Kubernetes 1.35 or "
        "enable the feature gate ImageVolume (from 1.31 on) on the API server and the kubelets, or copy the files to a "
        "claim and use pvc://",
    )


def _pod(namespace: str) -> dict[str, Any]:
    mount = {"name": "model", "mountPath": "/models", "readOnly": True}
    container = {
        "name": "model",
        "image": "image",
        "volumeMounts": [mount],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "uellm-image-volumes-", "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": 65532,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [container],
            "volumes": [image_volume("model", "image")],
        },
    }
