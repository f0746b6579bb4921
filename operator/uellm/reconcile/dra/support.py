"""Whether pods can claim GPUs in this cluster, and if not, what an administrator has to do. Pure."""

from __future__ import annotations

from typing import NamedTuple

from uellm.hardware import DRA_DRIVER
from uellm.reconcile.obstacle import Obstacle

_INSTEAD = "or set spec.placement.allocation to DevicePlugin"


class DraSupport(NamedTuple):
    """What there is for pods that claim GPUs."""

    served: bool
    """The API server has resource.k8s.io/v1, and the operator may read it."""
    forbidden: str = ""
    """What the operator may not read; empty where it may, or where it is not served."""
    device_class: bool = False
    """There is the DeviceClass of NVIDIA's driver."""
    gpus: int = 0
    """Whole GPUs that the driver publishes."""

    def unwritable(self) -> Obstacle | None:
        """Why no ResourceClaimTemplate can be written; None where one can."""
        if self.forbidden:
            return Obstacle(
                "DRAForbidden",
                f"the operator may not read the objects of resource.k8s.io/v1 ({self.forbidden}): upgrade its chart, "
                f"which grants the right, {_INSTEAD}",
            )
        if not self.served:
            return Obstacle(
                "DRANotServed",
                "the API server does not serve resource.k8s.io/v1, which spec.placement.allocation: DRA needs: use "
                f"Kubernetes 1.34 or later, {_INSTEAD}",
            )
        return None

    def obstacle(self) -> Obstacle | None:
        """Why no pod can claim a GPU; None where one can."""
        if (unwritable := self.unwritable()) is not None:
            return unwritable
        if not self.device_class:
            return Obstacle(
                "NoDeviceClass",
                f"there is no DeviceClass {DRA_DRIVER}, by which pods claim GPUs: install NVIDIA's DRA driver with GPU "
                f"allocation enabled, {_INSTEAD}",
            )
        if not self.gpus:
            return Obstacle(
                "NoResourceSlices",
                f"no ResourceSlice of the driver {DRA_DRIVER} has a whole GPU: see that its kubelet plugin runs on the "
                f"GPU nodes, and that not all of their GPUs are cut into MIG slices, {_INSTEAD}",
            )
        return None


NOT_SERVED = DraSupport(served=False)
