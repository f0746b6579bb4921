"""Where the copy of a model's files is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from uellm.api.base import ATOMIC, Model, ValidationRule
from uellm.api.scalars import DnsSubdomain, Quantity


class ModelCache(Model):
    """Where the model's files are copied to once, before an engine starts: a claim that exists, one that the operator
    makes, or the disk of each node."""

    rules = (
        ValidationRule(
            cel="(has(self.claimName) ? 1 : 0) + (has(self.size) ? 1 : 0) + "
            "(has(self.nodeLocal) && self.nodeLocal ? 1 : 0) == 1",
            holds=lambda cache: (cache.claim_name is not None) + (cache.size is not None) + cache.node_local == 1,
            message="must have one of claimName, nodeLocal, or size and accessModes of a claim that the operator makes",
        ),
        ValidationRule(
            cel="has(self.size) || (!has(self.storageClassName) && !has(self.accessModes))",
            holds=lambda cache: (
                cache.size is not None or (cache.storage_class_name is None and cache.access_modes is None)
            ),
            message="must have no storageClassName and no accessModes without size: they are for a claim that the "
            "operator makes",
        ),
        ValidationRule(
            cel="!has(self.size) || has(self.accessModes)",
            holds=lambda cache: cache.size is None or cache.access_modes is not None,
            message="must have accessModes if it has size: [ReadWriteMany], or [ReadWriteOnce] where all replicas run "
            "on one node",
        ),
    )

    claim_name: DnsSubdomain | None = None
    """A PersistentVolumeClaim that exists, in the service's namespace. Services may share it: there is one copy of each
    model and commit. Nothing in it is ever deleted."""
    storage_class_name: DnsSubdomain | None = None
    """Storage class of the claim that the operator makes; the cluster's default where not set."""
    size: Quantity | None = None
    """Size of the claim that the operator makes. It grows where this grows, if the storage class can. While a service
    changes its model, both copies have to fit; former ones are deleted when the next lacks room."""
    access_modes: Annotated[
        tuple[Literal["ReadWriteOnce", "ReadWriteMany"], ...] | None,
        Field(min_length=1, max_length=2, json_schema_extra=dict(ATOMIC)),
    ] = None
    """Access modes of the claim that the operator makes: ReadWriteMany where engines run on several nodes."""
    node_local: bool = False
    """Keep the copy on the disk of each node that runs the service. Its first pod there downloads it, and all services
    share the copy of a model and commit. The administrator sets directory and limit (`modelCache` in the chart)."""
