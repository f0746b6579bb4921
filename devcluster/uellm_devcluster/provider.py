"""The interface between `cluster` and the providers. A provider is a module with these functions."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from uellm_devcluster.state import Record, State


class Provider(Protocol):
    """One way to make a cluster."""

    PROVIDER: str

    def check(self, state: State) -> None:
        """Raise ClusterError when this machine or user cannot run the cluster. Changes nothing."""

    def start(self, state: State, record: Record, *, images: list[Path], tied: bool) -> None:
        """Start the parts that do not run and return when all are ready. `state` has been created and locked.

        `images` are archives for the nodes. With `tied`, the cluster ends with this thread, where the provider supports
        that.
        """

    def stop(self, state: State, *, keep_logs: bool = False) -> None:
        """End and remove whatever exists under this name, in any state. Harmless where nothing does."""

    def lives(self, state: State) -> bool:
        """Whether any of it still runs."""
