"""How far the copy of a service's model is, and what it adds to the condition ModelAccessible. Pure."""

from __future__ import annotations

from typing import NamedTuple

from uellm.hub.copy_state import Copied
from uellm.reconcile.conditions import Condition
from uellm.reconcile.inspection.model_state import TYPE
from uellm.reconcile.obstacle import Obstacle
from uellm.text import counted, decimal_size

DOWNLOADING = "ModelDownloading"


class DownloadState(NamedTuple):
    """What is known of the copy."""

    complete: bool
    """Engines may start from it, or need none."""
    condition: Condition | None = None
    """Why it is not complete; None where there is nothing to say."""
    note: str = ""
    """Follows what is said of the model."""
    compiled: str = ""
    """Where an engine may write what it compiles, below the directory of the volume; empty for nowhere."""

    @property
    def obstacle(self) -> Obstacle | None:
        """Why engines of a new revision cannot start; None where they can."""
        if self.complete:
            return None
        if self.condition is None:
            return Obstacle(DOWNLOADING, "the model is copied once there is a plan")
        return Obstacle(self.condition.reason, self.condition.message)

    def told(self, model: Condition) -> Condition:
        """The condition ModelAccessible. `model`: what the look-up says."""
        if self.condition is not None:
            return self.condition
        return model._replace(message=f"{model.message}; {self.note}") if self.note else model


NOT_NEEDED = DownloadState(True)
NOT_BEGUN = DownloadState(False)


def downloading(claim: str, what: str) -> DownloadState:
    """The copy is under way; `what` is done or waited for."""
    message = f"the model is being copied to claim {claim}: {what}"
    return DownloadState(False, Condition(TYPE, "Unknown", DOWNLOADING, message))


def refused(reason: str, message: str) -> DownloadState:
    """There can be no copy, as things are."""
    return DownloadState(False, Condition(TYPE, "False", reason, message))


def undecided(reason: str, message: str) -> DownloadState:
    """Nobody could tell."""
    return DownloadState(False, Condition(TYPE, "Unknown", reason, message))


def copied(claim: str, copy: Copied) -> DownloadState:
    """The copy is complete."""
    note = f"{counted(copy.files, 'file')} of {decimal_size(copy.bytes)} on claim {claim}"
    return DownloadState(True, note=note, compiled=copy.compiled)
