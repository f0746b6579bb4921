"""The objects that an LLMService consists of: one kind a file, each a pure function of the desired state.

Nothing here plans: the plan comes rendered (`uellm.reconcile.rendered_plan`).
"""

from __future__ import annotations

from typing import Any

from uellm.reconcile.children.configmap import configmap
from uellm.reconcile.children.deployment import deployment, frozen
from uellm.reconcile.children.desired_state import DesiredState, Images, PinnedTemplate
from uellm.reconcile.children.pdb import pdb
from uellm.reconcile.children.service import service
from uellm.reconcile.drift import signed

__all__ = ["DesiredState", "Images", "PinnedTemplate", "children", "frozen"]


def children(desired: DesiredState) -> tuple[dict[str, Any], ...]:
    """Every child in the order of writing: the Deployment last, because its pods need the others.

    Raises BadInput where the user's pod template cannot be merged.
    """
    return tuple(signed(child) for child in (configmap(desired), service(desired), pdb(desired), deployment(desired)))
