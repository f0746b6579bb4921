"""Where the copy of a model's files is kept."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from uellm.api.base import ATOMIC, Model, ValidationRule
from uellm.api.scalars import DnsSubdomain, Quantity


class ModelCache(Model):
    """A volume that the model's files are copied to once, before any engine starts: a claim that exists, or one that
    the operator makes."""

    rules = (
        ValidationRule(
            cel="has(self.claimName) != has(self.size)",
            holds=lambda cache: (cache.claim_name is None) != (cache.size is None),
            message="must have either claimName, or size and accessModes of a claim that the operator makes",
        ),
        ValidationRule(
            cel="!has(self.claimName) || (!has(self.storageClassName) && !has(self.accessModes))",
            holds=lambda cache: (
                cache.claim_name is None or (cache.storage_class_name is None and cache.access_modes is None)
            ),
            message="must have no storageClassName and no accessModes if it has claimName: that claim has its own",
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
