"""What `cluster` asks of whatever makes a cluster. A provider is a module with these names."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from uellm_devcluster.state import Record, State


class Provider(Protocol):
    """One way to make a cluster."""

    PROVIDER: str

    def check(self, state: State) -> None:
        """Raise ClusterError when this machine or this user cannot have the cluster; nothing was touched yet."""

    def start(self, state: State, record: Record, *, images: list[Path], tied: bool) -> None:
        """Start what does not run and return when all of it is ready. `state` is made and locked.

        `images` are archives for the nodes. `tied`: it ends with this thread, where the provider can see to that.
        """

    def stop(self, state: State, *, keep_logs: bool = False) -> None:
        """End and remove whatever of this name there is, in whatever state; harmless where there is nothing."""

    def lives(self, state: State) -> bool:
        """Whether any of it still runs."""
