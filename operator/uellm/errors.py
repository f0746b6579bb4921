"""The errors that end a command, and their exit statuses.

UellmError            a sentence for a person: fact, cause, what to change
+-- BadInput          exit 2: what was given cannot be read or is not allowed; `field` names where
+-- CannotBeDone      exit 1: what was asked is understood and cannot be had
    +-- PlanError     no plan; `reason` is the CamelCase reason of the `Planned` condition
        +-- ReloadError   by a field that running pods take over without a restart
"""

from __future__ import annotations


class UellmError(Exception):
    """A failure that its user can act on; the message is one complete line."""

    exit_status = 1
    transient = False
    """True where the same call may succeed later although nobody changes anything."""
    retry_after_s: float | None = None
    """When to try again, where the failure says so."""


class BadInput(UellmError):
    """The input is at fault. `field` is its path as the user wrote it (`spec.model.uri`), or a file's name."""

    exit_status = 2

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class CannotBeDone(UellmError):
    """The request is understood, and the answer is no."""


class PlanError(CannotBeDone):
    """No plan exists. `reason` is one of the reasons of the condition `Planned`, such as `NoFit`."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ReloadError(PlanError):
    """A field that running pods take over without a restart cannot be carried out.

    That the pods keep their revision does not show that it was accepted before.
    """
