"""The objects that an LLMService consists of: one kind a file, each a pure function of what is wanted."""

from __future__ import annotations

from typing import Any

from uellm.reconcile.children.configmap import configmap
from uellm.reconcile.children.deployment import deployment, frozen
from uellm.reconcile.children.pdb import pdb
from uellm.reconcile.children.service import service
from uellm.reconcile.children.wanted import Images, PinnedTemplate, Wanted
from uellm.reconcile.same import signed

__all__ = ["Images", "PinnedTemplate", "Wanted", "children", "frozen"]


def children(wanted: Wanted) -> tuple[dict[str, Any], ...]:
    """Every child in the order of writing: the Deployment last, for its pods need the others.

    Raises BadInput where the user's pod template cannot be merged.
    """
    return tuple(signed(child) for child in (configmap(wanted), service(wanted), pdb(wanted), deployment(wanted)))
