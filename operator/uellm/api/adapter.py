"""LoRA adapters of a model."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from uellm.api.base import Model, ValidationRule
from uellm.api.uris import ADAPTER_URIS, REVISION, matches_uri, uri_cel

MOST_ADAPTERS = 64


class AdapterSpec(Model):
    """A LoRA adapter that is served beside the model, under a name of its own."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$", max_length=128)]
    """The adapter's name in requests."""
    uri: Annotated[
        str,
        StringConstraints(min_length=6, max_length=512),
        ValidationRule(
            cel=uri_cel(ADAPTER_URIS),
            holds=lambda uri: matches_uri(uri, ADAPTER_URIS),
            message="must be hf://organisation/adapter, pvc://claim/path or file:///path; no part may begin with a dot",
        ),
    ]
    """Where adapter_config.json and the weights are: `hf://organisation/adapter`, `pvc://claim/path`, or `file:///path`
    inside the engine's container."""
    revision: Annotated[str, StringConstraints(pattern=REVISION, max_length=128)] = "main"
    """Branch, tag or commit of an `hf://` adapter. The commit that it stood for when it was looked up is served, until
    this, the URI or another adapter of the service changes."""
